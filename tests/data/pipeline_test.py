import contextlib
import itertools
from collections import Counter

import numpy as np
import pytest
from ml_collections import ConfigDict

from gac_jax.data.pipeline import split, train_batches, validation_batches
from gac_jax.data.sources import DOMAINS, Clip, open_source
from gac_jax.errors import UserError
from gac_jax.rates import FRAME_SAMPLES
from tests.token_sets import codes_of, write_set

CROP = 1_600


def config(root, **changes):
    data = ConfigDict(
        dict(
            root=str(root),
            domain_weights=dict(speech=0.5, sound=0.25, music=0.25, other=0.25),
            validation_percent=20.0,
            gain_jitter_db=6.0,
            num_threads=2,
        )
    )
    data.update(changes)
    return data


def take(count, data, batch_size=8, seed=0, crop=CROP, **options):
    with contextlib.closing(train_batches(data, batch_size, crop, seed, **options)) as batches:
        return [next(batches) for _ in range(count)]


@pytest.fixture
def worded(corpus):
    """The corpus with transcripts of the speech and labels of the sounds."""
    header, *rows = corpus.read_text(encoding="utf-8").splitlines()
    lines = [f"{header},label"]
    for index, row in enumerate(rows):
        path, domain, speaker, _, seconds = row.split(",")
        text = f"RAIN {index}" if domain == "speech" else ""
        label = f"dog {index}" if domain == "sound" else ""
        lines.append(f"{path},{domain},{speaker},{text},{seconds},{label}")
    corpus.write_text("\n".join(lines), encoding="utf-8")
    return corpus


def answers(batches, targets):
    """The answer to each clip of the batches, "" if there is none."""
    return {
        int(clip): targets.tokenizer.decode(text[start:stop])
        for batch in batches
        for clip, text, start, stop in zip(
            *(batch[name] for name in ("clip", "text", "answer_start", "text_length")), strict=True
        )
    }


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_batch_is_complete_and_typed(corpus):
    (batch,) = take(1, config(corpus))
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "wave": ((8, CROP), "float32"),
        "num_samples": ((8,), "int32"),
        "domain": ((8,), "int32"),
        "clip": ((8,), "int32"),
    }
    clips = open_source(str(corpus)).clips
    assert [DOMAINS[i] for i in batch["domain"]] == [clips[i].domain for i in batch["clip"]]


def test_stream_repeats_and_depends_on_the_seed(corpus):
    data = config(corpus)
    assert_same(take(4, data), take(4, data))
    orders = [[batch["clip"].tolist() for batch in take(4, data, seed=seed)] for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_places_of_crops_depend_on_the_seed(write_clip):
    folder = write_clip("one/sound.wav", 1.0).parent
    data = config(folder, validation_percent=0.0)
    first, second = (take(1, data, seed=seed)[0] for seed in (0, 1))
    assert all((a != b).any() for a, b in zip(first["wave"], second["wave"], strict=True))


@pytest.mark.parametrize("start", [1, 7])
def test_resumed_stream_equals_unbroken_one(corpus, start):
    data = config(corpus)
    assert_same(take(3, data, start_step=start), take(start + 3, data)[start:])


def test_number_of_threads_does_not_matter(corpus):
    streams = [take(5, config(corpus, num_threads=threads)) for threads in (0, 1, 4)]
    assert_same(streams[0], streams[1])
    assert_same(streams[0], streams[2])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_batches_of_one(corpus, count):
    data = config(corpus)
    shares = [
        take(3, data, process_index=index, process_count=count, start_step=2)
        for index in range(count)
    ]
    joined = [
        {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    assert_same(joined, take(3, data, start_step=2))


def test_batch_that_cannot_be_shared_is_refused(corpus):
    with pytest.raises(ValueError, match="8 cannot be shared by 3"):
        train_batches(config(corpus), 8, CROP, 0, process_count=3)


def test_domains_come_by_weight_and_absent_ones_are_dropped(corpus):
    count = Counter(
        np.concatenate([batch["domain"] for batch in take(20, config(corpus))]).tolist()
    )
    assert count == {0: 80, 1: 40, 2: 40}  # "other" has a weight, but no clips
    data = config(corpus, domain_weights=dict(speech=0.0, sound=3.0, music=1.0, other=0.0))
    count = Counter(np.concatenate([batch["domain"] for batch in take(20, data)]).tolist())
    assert count == {1: 120, 2: 40}


def test_every_crop_s_length_of_every_clip_comes_once_before_any_comes_again(corpus):
    data = config(corpus, validation_percent=0.0)
    lengths = {index: max(1, round((0.05 + 0.03 * index) * 32_000 / CROP)) for index in range(12)}
    assert len(set(lengths.values())) > 1
    size = sum(lengths.values())
    drawn = np.concatenate([batch["clip"] for batch in take(size, data)])
    speech = drawn[drawn < 12]
    epochs = [speech[start : start + size].tolist() for start in range(0, 4 * size, size)]
    assert all(Counter(epoch) == lengths for epoch in epochs)
    assert all(one != other for one, other in itertools.combinations(epochs, 2))


def test_crops_of_a_clip_differ(corpus):
    batches = take(12, config(corpus))
    clips = np.concatenate([batch["clip"] for batch in batches])
    waves = np.concatenate([batch["wave"] for batch in batches])[clips == 11]
    assert len(waves) > 3
    assert all((a != b).any() for a, b in itertools.combinations(waves, 2))


def test_split_is_disjoint_by_speaker():
    clips = [Clip(f"{i}.wav", "speech", speaker=f"voice {i % 100}") for i in range(1_000)]
    clips += [Clip(f"sound/{i}.wav", "sound") for i in range(1_000)]
    training, held_out = split(clips, 10.0)
    assert sorted(training + held_out) == list(range(2_000))
    voices = [{clips[i].speaker for i in side if i < 1_000} for side in (training, held_out)]
    assert not voices[0] & voices[1] and len(voices[0] | voices[1]) == 100
    assert 4 <= len(voices[1]) <= 18
    assert 70 <= sum(i >= 1_000 for i in held_out) <= 130


def test_split_of_a_clip_does_not_depend_on_the_others():
    clips = [Clip(f"{i}.wav", "sound") for i in range(300)]
    _, held_out = split(clips, 10.0)
    _, of_reversed = split(clips[::-1], 10.0)
    _, more = split(clips, 20.0)
    assert {clips[::-1][i] for i in of_reversed} == {clips[i] for i in held_out}
    assert set(held_out) < set(more)
    assert split(clips, 0.0)[1] == [] and split(clips, 100.0)[0] == []
    # On another machine, or in another year, the same clips are held out.
    assert held_out[:5] == [0, 4, 14, 15, 18]


def test_training_and_validation_share_no_clip(corpus):
    data = config(corpus)
    trained = {int(i) for batch in take(20, data) for i in batch["clip"]}
    validated = {int(i) for batch in validation_batches(data, 8, CROP, 4) for i in batch["clip"]}
    assert trained and validated and not trained & validated


def test_validation_is_finite_and_repeats(corpus):
    data = config(corpus)
    first, second = (list(validation_batches(data, 8, CROP, 3)) for _ in range(2))
    assert len(first) == 3
    assert_same(first, second)
    halves = [list(validation_batches(data, 8, CROP, 3, index, 2)) for index in range(2)]
    np.testing.assert_array_equal(
        np.concatenate([half[2]["clip"] for half in halves]), first[2]["clip"]
    )


def test_validation_has_no_gain_jitter(corpus):
    for batch in validation_batches(config(corpus), 8, CROP, 2):
        for wave, count in zip(batch["wave"], batch["num_samples"], strict=True):
            assert np.mean(np.square(wave[:count])) == pytest.approx(1, abs=1e-3)


def test_validation_is_empty_when_nothing_is_held_out(corpus):
    assert list(validation_batches(config(corpus, validation_percent=0.0), 8, CROP, 2)) == []


@pytest.mark.parametrize(
    "changes",
    [dict(validation_percent=100.0), dict(domain_weights=dict(speech=0.0, sound=0.0, music=0.0))],
)
def test_nothing_to_train_on_is_refused(corpus, changes):
    data = config(corpus, **changes)
    with pytest.raises(UserError, match="no clip to train on"):
        train_batches(data, 8, CROP, 0)


def test_unreadable_clips_leave_the_stream_in_step(corpus):
    whole = take(6, config(corpus))
    (corpus.parent / "speech" / "03.wav").write_text("not audio")
    broken = take(6, config(corpus))
    for one, other in zip(whole, broken, strict=True):
        np.testing.assert_array_equal(one["clip"], other["clip"])
        np.testing.assert_array_equal(other["num_samples"] == 0, other["clip"] == 3)
        np.testing.assert_array_equal(
            one["wave"][one["clip"] != 3], other["wave"][one["clip"] != 3]
        )
    assert any((batch["clip"] == 3).any() for batch in broken)


def test_bundled_clips_train():
    data = config("", validation_percent=0.0)
    (batch,) = take(1, data)
    assert set(batch["domain"]) == {0, 1, 2} and (batch["num_samples"] == CROP).all()


def test_texts_belong_to_their_clips(worded, targets):
    batches = take(12, config(worded, validation_percent=0.0), targets=targets)
    # Of the speech, a crop holds clip 0 only; music has no words.
    expected = {0: "rain 0"} | {index: f"dog {index}" for index in range(12, 18)}
    assert answers(batches, targets) == {index: expected.get(index, "") for index in range(23)}
    assert batches[0]["text"].shape == (8, 64) and batches[0]["text"].dtype == np.int32
    assert batches[0]["text_length"].shape == batches[0]["answer_start"].shape == (8,)


def test_texts_leave_the_audio_alone(worded, targets):
    data = config(worded)
    with_text = take(3, data, targets=targets)
    names = ("wave", "num_samples", "domain", "clip")
    assert_same([{name: batch[name] for name in names} for batch in with_text], take(3, data))


def test_stream_with_texts_resumes_and_is_shared(worded, targets):
    data = config(worded)
    whole = take(5, data, targets=targets)
    assert_same(take(2, data, start_step=3, targets=targets), whole[3:])
    shares = [
        take(5, data, process_index=index, process_count=2, targets=targets) for index in range(2)
    ]
    for index, share in enumerate(shares):
        np.testing.assert_array_equal(share[4]["text"], np.split(whole[4]["text"], 2)[index])


def test_validation_texts_repeat(worded, targets):
    data = config(worded, validation_percent=50.0)
    first, second = (list(validation_batches(data, 8, CROP, 3, targets=targets)) for _ in range(2))
    assert_same(first, second)
    assert any(words.startswith("dog") for words in answers(first, targets).values())


def test_corpus_without_words_is_refused(corpus, targets):
    with pytest.raises(UserError, match=r"manifest.csv: no clip has a label, .* at most 0.05 s"):
        train_batches(config(corpus), 8, CROP, 0, targets=targets)


@pytest.fixture
def coded(corpus, tmp_path):
    """Options of a stream that reads codes of the corpus."""
    tokens = write_set(open_source(str(corpus)), tmp_path / "tokens", 2)
    return {"tokens": tokens, "crop": 2 * FRAME_SAMPLES}


def test_codes_belong_to_their_crops(corpus, coded):
    data = config(corpus, validation_percent=0.0)
    batches = take(6, data, **coded)
    assert batches[0]["codes"].shape == (8, 9, 2) and batches[0]["codes"].dtype == np.int32
    known = {tokens.codes.shape[1] for _, tokens in (coded["tokens"][i] for i in range(23))}
    assert known == {1, 2, 3, 4, 5}
    starts = set()
    for batch in batches:
        for codes, count in zip(batch["codes"], batch["num_samples"], strict=True):
            first, frames = int(codes[0, 0]), -(-int(count) // FRAME_SAMPLES)
            assert 1 <= frames <= 2
            np.testing.assert_array_equal(codes[:, :frames], codes_of(5)[:, first : first + frames])
            assert not codes[:, frames:].any()
            starts.add(first)
    assert starts == {0, 1, 2, 3}


def test_stream_with_codes_resumes_and_is_shared(corpus, coded):
    data = config(corpus)
    whole = take(5, data, **coded)
    assert_same(take(5, config(corpus, num_threads=0), **coded), whole)
    assert_same(take(2, data, start_step=3, **coded), whole[3:])
    shares = [take(5, data, process_index=i, process_count=2, **coded) for i in range(2)]
    for index, share in enumerate(shares):
        for name, value in share[4].items():
            np.testing.assert_array_equal(value, np.split(whole[4][name], 2)[index])


def test_validation_with_codes_repeats(corpus, coded):
    data, tokens = config(corpus, validation_percent=50.0), coded["tokens"]
    first, second = (
        list(validation_batches(data, 8, 2 * FRAME_SAMPLES, 3, tokens=tokens)) for _ in range(2)
    )
    assert_same(first, second)
    assert first[0]["codes"].shape == (8, 9, 2)


def test_clips_without_codes_are_refused_before_training(corpus, coded, write_clip):
    write_clip("speech/new.wav", 0.3)
    with corpus.open("a", encoding="utf-8") as file:
        file.write("\nspeech/new.wav,speech,,,0.3")
    told = r"tokens: 1 clips have no codes, such as speech/new.wav; tokenise"
    with pytest.raises(UserError, match=told):
        take(1, config(corpus, validation_percent=0.0), **coded)
    data = config(corpus, validation_percent=100.0)
    with pytest.raises(UserError, match=told):
        next(validation_batches(data, 8, 2 * FRAME_SAMPLES, 1, tokens=coded["tokens"]))


def test_codes_of_another_recording_end_the_training(corpus, coded, write_clip):
    for index in range(6):
        write_clip(f"sound/{index:02d}.wav", 0.7)
    with pytest.raises(UserError, match=r"sound/.*: is 0.70 s long, but its codes are of"):
        take(3, config(corpus, validation_percent=0.0), **coded)
