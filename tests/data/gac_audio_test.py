import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from gac_jax.data.gac_audio import decode_record, encode_record
from gac_jax.data.packing import pack
from gac_jax.data.pipeline import split
from gac_jax.data.sources import CLIP_FIELDS, Clip, open_source
from gac_jax.errors import UserError

CLIP = Clip(
    "spéech/a.wav",
    "speech",
    text="Ein Wort, 一個詞",
    label="voice",
    speaker="s 1",
    lang="de",
    licence="CC0",
    source="made up",
    native_sr=16_000,
    bw_hz=7_800.5,
    dur_s=0.25,
    audio=b"fLaC\x00\xff",
)


@pytest.fixture
def packed(corpus: Path, tmp_path: Path) -> Path:
    out = tmp_path / "packed"
    pack(str(corpus), out, num_shards=3, workers=1)
    return out


def test_a_record_holds_all_that_is_known_of_a_clip() -> None:
    assert decode_record(encode_record(CLIP)) == CLIP
    assert all(getattr(CLIP, name) for name in CLIP_FIELDS)
    assert encode_record(CLIP) == encode_record(decode_record(encode_record(CLIP)))


def test_what_is_unknown_stays_unknown() -> None:
    assert decode_record(encode_record(Clip("a.wav", "other"))) == Clip("a.wav", "other")


@pytest.mark.parametrize("record", [b"", b"hello", bytes(30)])
def test_another_kind_of_record_is_refused(record: bytes) -> None:
    with pytest.raises(ValueError, match="not a record of gac_audio"):
        decode_record(record)


def test_source_knows_what_the_split_needs_without_reading_records(
    corpus: Path, packed: Path
) -> None:
    original, source = open_source(str(corpus)), open_source(f"tfds:{packed}:train")
    for path in packed.glob("*.array_record-*"):
        path.unlink()
    fields = [(c.path, c.domain, c.speaker, c.dur_s) for c in source.clips]
    assert fields == [(c.path, c.domain, c.speaker, c.dur_s) for c in original.clips]
    assert split(source.clips, 20.0) == split(original.clips, 20.0)


def test_files_alone_are_a_source_too(packed: Path) -> None:
    source = open_source(f"tfds:{packed}:train")
    os.remove(packed / "dataset_info.json")
    files = open_source(f"array_record:{packed}/*.array_record*")
    assert [clip.path for clip in files.clips] == [clip.path for clip in source.clips]
    assert [files[i] for i in range(23)] == [source[i] for i in range(23)]
    part = open_source(f"array_record:{packed}/*-00001-of-00003")
    assert [part[i] for i in range(8)] == [source[i] for i in range(7, 15)]


@pytest.mark.parametrize("kind", ["tfds:{}:train", "array_record:{}/*.array_record*"])
def test_packed_source_can_go_to_another_process(packed: Path, kind: str) -> None:
    source = pickle.loads(pickle.dumps(open_source(kind.format(packed))))
    assert source[3].path == source.clips[3].path == "speech/03.wav"


def test_data_set_is_found_by_name(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "sets"))
    pack(str(corpus), tmp_path / "sets" / "gac_audio" / "1.0.0", workers=1)
    assert len(open_source("tfds:gac_audio:train")) == 23


@pytest.mark.parametrize("name", ["/nowhere:train", "gac_audio:train", "gac_audio", "a/b:c:d"])
def test_missing_data_set_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=f"tfds:{name}: no data set"):
        open_source(f"tfds:{name}")


def test_folder_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds dataset_info.json"):
        open_source(f"tfds:{tmp_path}:train")


def test_missing_split_is_refused(packed: Path) -> None:
    with pytest.raises(UserError, match="no split 'test', only train"):
        open_source(f"tfds:{packed}:test")


def test_data_set_of_another_kind_is_refused(packed: Path) -> None:
    os.remove(packed / "metadata.json")
    with pytest.raises(UserError, match=r"not packed by gac_jax\.data\.pack"):
        open_source(f"tfds:{packed}:train")


def test_pattern_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"array_record:.*x-\*: no file matches"):
        open_source(f"array_record:{tmp_path}/x-*")


def write_other_records(path: Path) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    writer.write(b"hello")
    writer.close()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"no records"),
        lambda path: path.write_bytes(path.read_bytes()[:-70_000]),
        write_other_records,
    ],
)
def test_file_that_is_damaged_or_of_another_kind_is_named(
    packed: Path, spoil: Callable[[Path], object]
) -> None:
    (path,) = packed.glob("*-00002-of-00003")
    spoil(path)
    with pytest.raises(UserError, match="00002-of-00003: no file of a packed data set, or damaged"):
        open_source(f"array_record:{packed}/*.array_record*")


def test_files_without_a_clip_are_refused(tmp_path: Path) -> None:
    ArrayRecordWriter(str(tmp_path / "x"), "group_size:1").close()
    with pytest.raises(UserError, match="hold no clips"):
        open_source(f"array_record:{tmp_path}/x")


def test_damaged_record_fails_alone(packed: Path) -> None:
    (path,) = packed.glob("*-00000-of-00003")
    data = bytearray(path.read_bytes())
    place = data.index(b"fLaC") + 100  # in the first clip
    data[place : place + 4] = b"\xde\xad\xbe\xef"
    path.write_bytes(data)
    source = open_source(f"tfds:{packed}:train")
    with pytest.raises(RuntimeError, match="Corrupted"):
        source[0]
    assert source[1].path == "speech/01.wav"


def test_data_set_may_move(packed: Path, tmp_path: Path) -> None:
    before = open_source(f"tfds:{packed}:train")[5]
    shutil.move(packed, tmp_path / "elsewhere")
    assert open_source(f"tfds:{tmp_path / 'elsewhere'}:train")[5] == before
