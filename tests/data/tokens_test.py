import json
import pickle
from pathlib import Path

import grain
import numpy as np
import pytest

from gac_jax.bitstream import Tokens
from gac_jax.data import tokens
from gac_jax.data.sources import Clip, FileSource, Source, open_source
from gac_jax.data.tokens import Outcome, TokenSource
from gac_jax.errors import UserError
from tests.token_sets import FINGERPRINT, about, outcome_of, tokens_of, write_set


@pytest.fixture
def source(corpus: Path) -> Source:
    return open_source(str(corpus))


def test_a_record_needs_no_reader_of_ours(source: Source, tmp_path: Path) -> None:
    write_set(source, tmp_path / "set", 2)
    records = grain.sources.ArrayRecordDataSource(
        [str(path) for path in sorted((tmp_path / "set").glob("*.array_record"))]
    )
    assert len(records) == len(source) == 23
    for clip, record in zip(source.clips, records, strict=True):
        line, _, gac = record.partition(b"\n")
        known = json.loads(line)
        assert (known["path"], known["domain"]) == (clip.path, clip.domain)
        assert known.get("speaker", "") == clip.speaker and known["dur_s"] == clip.dur_s
        assert Tokens.from_bytes(gac) == outcome_of(clip).tokens


def test_a_record_keeps_all_that_is_known(write_clip) -> None:
    clip = Clip(
        "a.wav", "speech", 'Grüße,\n"du"', "\u2028", "I", "de", "CC", "me", 8_000, 3.5e3, 9.1
    )
    coded = tokens_of(np.ones(700, np.float32))
    assert tokens.from_record(tokens.to_record(clip, coded)) == (clip, coded)


@pytest.mark.parametrize("shards", [1, 2, 7, 23])
def test_a_set_is_the_corpus_in_its_order(source: Source, tmp_path: Path, shards: int) -> None:
    dropped = source.clips[5].path
    found = write_set(source, tmp_path / "set", shards, dropped)
    kept = [clip for clip in source.clips if clip.path != dropped]
    assert [clip.path for clip, _ in (found[i] for i in range(len(found)))] == [
        clip.path for clip in kept
    ]
    for clip in kept:
        assert found.of(clip.path) == outcome_of(clip).tokens
    assert found.dropped == {dropped: "damaged"}
    with pytest.raises(UserError, match=rf"{dropped}: no codes in .*: damaged"):
        found.of(dropped)
    found.check(clip.path for clip in source.clips)
    with pytest.raises(IndexError):
        found[len(found)]


@pytest.mark.parametrize(("clips", "shards"), [(1, 1), (23, 7), (1_000, 3), (5, 5)])
def test_shards_hold_each_clip_once(clips: int, shards: int) -> None:
    made_of = about(clips, shards)
    parts = [made_of.part(shard) for shard in range(shards)]
    assert [i for part in parts for i in part] == list(range(clips))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len({made_of.stem(shard) for shard in range(shards)}) == shards


def test_a_shard_may_hold_no_record(source: Source, tmp_path: Path) -> None:
    found = write_set(FileSource(source.clips[:2]), tmp_path, 2, source.clips[0].path)
    assert len(found) == 1 and found[0].clip.path == source.clips[1].path


def test_clips_without_codes_are_named(source: Source, tmp_path: Path) -> None:
    found = write_set(FileSource(source.clips[:20]), tmp_path / "set")
    with pytest.raises(UserError, match=r"set: 3 clips have no codes, such as music/02.wav, "):
        found.check(clip.path for clip in source.clips)
    with pytest.raises(UserError, match="not among the clips that were tokenised"):
        found.of("music/04.wav")


def test_a_reader_travels_to_other_processes(source: Source, tmp_path: Path) -> None:
    found = write_set(source, tmp_path / "set", 2)
    assert pickle.loads(pickle.dumps(found))[22] == found[22]


def test_an_unfinished_set_is_refused(source: Source, tmp_path: Path) -> None:
    write_set(source, tmp_path, 3)
    made_of = tokens.read_about(tmp_path)
    assert tokens.missing_shards(tmp_path, made_of) == []
    (tmp_path / "tokens-00001-of-00003.array_record").unlink()  # its index is still there
    assert tokens.missing_shards(tmp_path, made_of) == [1]
    with pytest.raises(UserError, match=r"1 of 3 shards are missing, the first tokens-00001"):
        TokenSource(tmp_path)


def test_codes_of_another_encoder_are_refused(source: Source, tmp_path: Path) -> None:
    write_set(source, tmp_path)
    TokenSource(tmp_path, FINGERPRINT)
    with pytest.raises(UserError, match=r"encoder 0001020304050607 \(none\), .* is 0{16};"):
        TokenSource(tmp_path, bytes(8))


@pytest.mark.parametrize(
    "change", [{"fingerprint": "00"}, {"batch_size": 2}, {"corpus": "x"}, {"shards": 3}]
)
def test_a_folder_goes_on_with_the_same_set_only(tmp_path: Path, change: dict) -> None:
    tokens.begin(tmp_path, about(9, 2))
    tokens.begin(tmp_path, about(9, 2, model="the same encoder, another decoder"))
    (name,) = change
    with pytest.raises(UserError, match=f"{tmp_path.name}: holds tokens with {name} "):
        tokens.begin(tmp_path, about(9, **{"shards": 2, **change}))
    assert tokens.read_about(tmp_path) == about(9, 2)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "no tokens here"),
        ("", "damaged"),
        ("[]", "damaged"),
        ('{"format": 1}', "damaged"),
        ('{"format": 1, "codebook_sizes": [1], "colour": "red"}', "damaged"),
        ('{"format": 2}', "format 2, this program reads 1"),
    ],
)
def test_a_folder_that_holds_no_set_is_refused(tmp_path: Path, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / "tokens.json").write_text(text)
    with pytest.raises(UserError, match=told):
        TokenSource(tmp_path)


@pytest.mark.parametrize("damage", ["gone", "not JSON", "a line short", "no length"])
def test_a_damaged_index_is_refused(source: Source, tmp_path: Path, damage: str) -> None:
    write_set(source, tmp_path)
    path = tmp_path / "tokens-00000-of-00001.jsonl"
    lines = path.read_text().splitlines()
    path.unlink()
    if damage != "gone":
        lines[-1:] = {"not JSON": ["{"], "a line short": [], "no length": ["[]"]}[damage]
        path.write_text("\n".join(lines))
    with pytest.raises(UserError, match="elsewhere"):
        TokenSource(tmp_path)


def test_a_damaged_record_is_named(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokens.to_record
    monkeypatch.setattr(tokens, "to_record", lambda *clip: whole(*clip)[:-1] + b"?")
    found = write_set(source, tmp_path / "set")
    with pytest.raises(UserError, match=r"set: record 3 is damaged \(chunk 1 of 1 damaged"):
        found[3]


def test_a_full_disk_leaves_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Writer(tokens.ArrayRecordWriter):
        def write(self, record: bytes) -> None:
            raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(tokens, "ArrayRecordWriter", Writer)
    done = [Outcome(Clip("a.wav", "sound"), tokens_of(np.ones(9, np.float32)), "")]
    with pytest.raises(UserError, match=r"cannot be written \(.* No space left on device\)"):
        tokens.write_shard(tmp_path, about(1), 0, done)
    assert tokens.missing_shards(tmp_path, about(1)) == [0]
    assert [p.suffix for p in tmp_path.iterdir()] == [".jsonl"]
