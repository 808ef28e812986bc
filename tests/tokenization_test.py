import dataclasses
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest
import soundfile

import gac_jax
from gac_jax import tokenization
from gac_jax.codec import Codec
from gac_jax.data.sources import Clip, FileSource, open_folder
from gac_jax.data.tokens import TokenSource
from gac_jax.errors import UserError
from gac_jax.tokenization import Totals, describe, tokenize

# (name, rate, channels, seconds): of windows of each size, and longer than one.
CLIPS = (
    ("a.wav", 32_000, 1, 0.3),
    ("b.flac", 44_100, 2, 1.1),
    ("c.ogg", 16_000, 1, 3.0),
    ("d.wav", 48_000, 1, 0.7),
    ("e.flac", 32_000, 1, 2.5),
)


@pytest.fixture(scope="module")
def codec(tiny_model: Path) -> Codec:
    return gac_jax.load(tiny_model, batch_size=2)


@pytest.fixture
def corpus(tmp_path: Path, rng: np.random.Generator) -> FileSource:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, rate, channels, seconds in CLIPS:
        wave = 0.1 * rng.standard_normal((round(seconds * rate), channels))
        soundfile.write(folder / name, wave, rate)
    return open_folder(folder)


def records(folder: Path) -> list[bytes]:
    paths = [str(path) for path in sorted(folder.glob("*.array_record"))]
    return list(grain.sources.ArrayRecordDataSource(paths))


def test_codes_are_those_of_each_file(codec: Codec, corpus: FileSource, tmp_path: Path) -> None:
    totals = tokenize(codec, corpus, tmp_path / "set", 2)
    found = TokenSource(tmp_path / "set", codec.fingerprint)
    assert [clip.path for clip, _ in (found[i] for i in range(5))] == [c.path for c in corpus.clips]
    for clip in corpus.clips:
        tokens = found.of(clip.path)
        assert tokens == codec.encode_file(str(clip.audio)) and tokens.num_residuals == 8
    assert (totals.clips, totals.problems) == (5, {})
    assert totals.audio_seconds == pytest.approx(7.6, abs=1e-3) and totals.work_seconds > 0


@pytest.mark.parametrize("count", [2, 3])
def test_number_of_processes_does_not_matter(
    codec: Codec, corpus: FileSource, tmp_path: Path, count: int
) -> None:
    tokenize(codec, corpus, tmp_path / "one", 4)
    shares = [tokenize(codec, corpus, tmp_path / "many", 4, i, count) for i in range(count)]
    assert sum(share.clips for share in shares) == 5 and all(share.clips < 5 for share in shares)
    assert records(tmp_path / "many") == records(tmp_path / "one")
    assert len(records(tmp_path / "one")) == 5


def test_a_run_that_was_killed_goes_on(
    codec: Codec, corpus: FileSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize(codec, corpus, tmp_path / "whole", 3)
    encode, encoded = codec.encode_streams, []

    def killed_at_the_third(streams: Any, kbps: float) -> Any:
        encoded.append(len(streams))
        if len(encoded) == 3:
            raise KeyboardInterrupt
        return encode(streams, kbps)

    monkeypatch.setattr(codec, "encode_streams", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        tokenize(codec, corpus, tmp_path / "set", 3)
    with pytest.raises(UserError, match="1 of 3 shards are missing"):
        TokenSource(tmp_path / "set")
    assert tokenize(codec, corpus, tmp_path / "set", 3).clips == 2
    assert encoded == [1, 2, 2, 2]  # nothing that was finished is done again
    assert records(tmp_path / "set") == records(tmp_path / "whole")
    assert tokenize(codec, corpus, tmp_path / "set", 3) == Totals()


@pytest.mark.parametrize("held_seconds", [60.0, 0.0])
def test_a_clip_that_cannot_be_read_is_dropped_and_named(
    codec: Codec,
    corpus: FileSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    held_seconds: float,
) -> None:
    monkeypatch.setattr(tokenization, "HELD_SECONDS", held_seconds)
    folder = tmp_path / "corpus"
    (folder / "b.flac").write_bytes((folder / "b.flac").read_bytes()[:60_000])  # breaks half way
    (folder / "d.wav").unlink()
    totals = tokenize(codec, corpus, tmp_path / "set", 1)
    found = TokenSource(tmp_path / "set")
    assert totals.clips == len(found) == 3
    assert "damaged or cut short" in found.dropped["b.flac"]
    assert "no such file" in found.dropped["d.wav"]
    assert found.dropped == totals.problems and len(found.dropped) == 2
    for name in ("a.wav", "c.ogg", "e.flac"):
        assert found.of(name) == codec.encode_file(folder / name)


def test_a_disk_that_went_away_finishes_no_shard(
    codec: Codec, corpus: FileSource, tmp_path: Path
) -> None:
    for name in ("c.ogg", "d.wav", "e.flac"):
        (tmp_path / "corpus" / name).unlink()
    told = r"tokens-00001-of-00002: none of its 3 clips can be read, the first .* no such file"
    with pytest.raises(UserError, match=told):
        tokenize(codec, corpus, tmp_path / "set", 2)
    assert [path.name for path in (tmp_path / "set").glob("*.array_record")] == [
        "tokens-00000-of-00002.array_record"
    ]


def test_packed_clips_have_the_codes_of_files(
    codec: Codec, corpus: FileSource, tmp_path: Path
) -> None:
    path = tmp_path / "corpus" / "e.flac"
    packed = FileSource([Clip("e", "sound", audio=path.read_bytes())])
    tokenize(codec, packed, tmp_path / "set")
    assert TokenSource(tmp_path / "set").of("e") == codec.encode_file(path)


def test_a_damaged_record_of_a_data_set_is_dropped(
    codec: Codec, corpus: FileSource, tmp_path: Path
) -> None:
    class Damaged(FileSource):
        def __getitem__(self, index: int) -> Clip:
            if index == 1:
                raise RuntimeError("chunk data hash mismatch")
            return super().__getitem__(index)

    tokenize(codec, Damaged(corpus.clips), tmp_path / "set")
    assert TokenSource(tmp_path / "set").dropped == {"b.flac": "chunk data hash mismatch"}


def test_a_set_goes_on_with_its_own_model_and_corpus_only(
    codec: Codec, corpus: FileSource, tmp_path: Path, tiny_model: Path
) -> None:
    about = describe(codec, corpus)
    assert (about.clips, about.shards, about.codebook_sizes) == (5, 1, codec.codebook_sizes)
    assert about.fingerprint == codec.fingerprint.hex()
    others = {
        "fingerprint": describe(Codec({**codec.config, "fingerprint": "00" * 8}, {}, 2), corpus),
        "batch_size": describe(gac_jax.load(tiny_model), corpus),
        "corpus": describe(codec, FileSource(corpus.clips[::-1])),
        "shards": describe(codec, corpus, 2),
    }
    for name, other in others.items():
        assert dataclasses.asdict(about).items() - dataclasses.asdict(other).items() == {
            (name, getattr(about, name))
        }


def test_default_shards_hold_a_thousand_clips(codec: Codec) -> None:
    for clips, shards in ((1, 1), (1_000, 1), (1_001, 2), (8_961, 9)):
        source = FileSource([Clip(f"{i}.wav", "sound") for i in range(clips)])
        assert describe(codec, source).shards == shards


def test_clips_must_be_told_apart_and_fill_the_shards(codec: Codec, corpus: FileSource) -> None:
    with pytest.raises(UserError, match=r"a.wav: two clips of the corpus have this path"):
        describe(codec, FileSource([*corpus.clips, corpus.clips[0]]))
    with pytest.raises(UserError, match=r"--shards=6: the corpus has only 5 clips"):
        describe(codec, corpus, 6)


def test_totals_add_up_and_read_well() -> None:
    one = Totals(990, 4_320.0, 144.0, {"a.wav": "cut short"})
    assert str(one) == (
        "990 clips, 1.2 h of audio in 2.4 min: 30 h/h (real-time factor 0.033); 1 dropped"
    )
    both = one + Totals(10, 30.0, 1.0, {"b.wav": "empty"})
    assert both == Totals(1_000, 4_350.0, 145.0, {"a.wav": "cut short", "b.wav": "empty"})
    assert str(Totals()) == "0 clips, 0 s of audio"
