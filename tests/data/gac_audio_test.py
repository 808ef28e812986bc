import io
import logging
import os
import pickle

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from gac_jax.data.gac_audio import pack
from gac_jax.data.pipeline import split
from gac_jax.data.sources import open_source
from gac_jax.errors import UserError
from gac_jax.signal.audio_io import read_audio

tfds.disable_progress_bar()


@pytest.fixture
def packed(corpus, tmp_path):
    return pack(str(corpus), str(tmp_path / "packed"), num_shards=3)


def test_packed_clips_equal_those_of_the_manifest(corpus, packed):
    original, source = open_source(str(corpus)), open_source(f"tfds:{packed}:train")
    assert len(source) == len(original) == 23
    for index in range(23):
        ours, theirs = source[index], original[index]
        assert (ours.path, ours.domain, ours.speaker) == (
            theirs.path,
            theirs.domain,
            theirs.speaker,
        )
        assert ours.dur_s == pytest.approx(theirs.dur_s)
        audio, rate = soundfile.read(io.BytesIO(ours.audio))
        assert rate == 32_000
        np.testing.assert_allclose(audio, read_audio(theirs.audio), atol=2**-15)


def test_source_knows_what_the_split_needs_without_reading_records(corpus, packed):
    original, source = open_source(str(corpus)), open_source(f"tfds:{packed}:train")
    fields = [(clip.path, clip.domain, clip.speaker) for clip in source.clips]
    assert fields == [(clip.path, clip.domain, clip.speaker) for clip in original.clips]
    assert split(source.clips, 20.0) == split(original.clips, 20.0)


def test_packed_audio_is_32_khz_mono_flac(tmp_path, write_clip):
    write_clip("in/speech/a.ogg", 0.5, 44_100, 2)
    source = open_source(f"tfds:{pack(str(tmp_path / 'in'), str(tmp_path / 'out'))}:train")
    assert source[0].audio[:4] == b"fLaC"
    with source[0].open() as file:
        assert (file.samplerate, file.channels, file.frames) == (32_000, 1, 16_000)
        file.seek(15_000)
        assert len(file.read()) == 1_000


def test_packed_source_can_go_to_another_process(packed):
    source = pickle.loads(pickle.dumps(open_source(f"tfds:{packed}:train")))
    assert source[3].path == "speech/03.wav"


def test_data_set_is_found_by_name(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "packed"))
    assert len(open_source("tfds:gac_audio:train")) == 23


def test_unreadable_clips_are_left_out_and_named(tmp_path, write_clip, caplog):
    write_clip("in/a.wav")
    (tmp_path / "in" / "b.wav").write_text("not audio")
    write_clip("in/c.wav")
    with caplog.at_level(logging.WARNING, logger="absl"):
        folder = pack(str(tmp_path / "in"), str(tmp_path / "out"))
    source = open_source(f"tfds:{folder}:train")
    assert [clip.path for clip in source.clips] == ["a.wav", "c.wav"]
    assert [source[index].path for index in range(2)] == ["a.wav", "c.wav"]
    (warning,) = (text for text in caplog.messages if "left out" in text)
    assert str(tmp_path / "in" / "b.wav") in warning


def test_wrong_root_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        pack(str(tmp_path / "nowhere"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_clips_without_one_that_reads_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.wav").write_text("not audio")
    with pytest.raises(UserError, match="none of the clips"):
        pack(str(tmp_path / "in"), str(tmp_path / "out"))
    assert os.listdir(tmp_path / "out" / "gac_audio") == []


def test_existing_data_set_is_not_overwritten(corpus, packed, tmp_path):
    with pytest.raises(UserError, match="this data set exists"):
        pack(str(corpus), str(tmp_path / "packed"))


@pytest.mark.parametrize("name", ["/nowhere:train", "gac_audio:train", "gac_audio", "", "a/b:c:d"])
def test_missing_data_set_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=f"tfds:{name}: no data set"):
        open_source(f"tfds:{name}")


def test_folder_that_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds dataset_info.json"):
        open_source(f"tfds:{tmp_path}:train")


def test_packed_data_set_is_not_packed_again(packed, tmp_path):
    with pytest.raises(UserError, match="packed already"):
        pack(f"tfds:{packed}:train", str(tmp_path / "again"))


def test_missing_split_is_refused(packed):
    with pytest.raises(UserError, match="no split 'test', only train"):
        open_source(f"tfds:{packed}:test")


def test_data_set_of_another_kind_is_refused(packed):
    os.remove(os.path.join(packed, "metadata.json"))
    with pytest.raises(UserError, match="not packed by gac_jax.data.gac_audio"):
        open_source(f"tfds:{packed}:train")
