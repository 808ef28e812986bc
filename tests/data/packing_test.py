import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import soundfile
from ml_collections import ConfigDict

from gac_jax.data import packing
from gac_jax.data.packing import Report, pack
from gac_jax.data.pipeline import train_batches
from gac_jax.data.sources import CLIP_FIELDS, Clip, open_source
from gac_jax.data.transforms import read_crop
from gac_jax.errors import UserError
from gac_jax.rates import FRAME_SAMPLES
from gac_jax.signal.audio_io import read_audio
from tests import tiny

WriteClip = Callable[..., Path]
SHARDS = 5


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(corpus: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files of an unbroken run."""
    pack(str(corpus), tmp_path / "whole", SHARDS, workers=1)
    return files_of(tmp_path / "whole")


def test_packed_clips_equal_those_of_the_manifest(corpus: Path, tmp_path: Path) -> None:
    report = pack(str(corpus), tmp_path / "out", num_shards=3, workers=2)
    original, source = open_source(str(corpus)), open_source(f"tfds:{tmp_path / 'out'}:train")
    assert len(source) == len(original) == 23
    for index in range(23):
        ours, theirs = source[index], original[index]
        known = {name: getattr(theirs, name) for name in CLIP_FIELDS}
        known |= {"native_sr": 32_000, "dur_s": pytest.approx(theirs.dur_s)}
        assert {name: getattr(ours, name) for name in CLIP_FIELDS} == known
        audio, rate = soundfile.read(io.BytesIO(ours.audio), dtype="float32")
        assert rate == 32_000
        np.testing.assert_array_equal(audio, read_audio(theirs.audio))  # 16 bits before and after
    assert report.clips == {"speech": 12, "sound": 6, "music": 5} and not report.dropped
    assert str(report) == (
        "packed 23 clips, 3.88 s (12 speech, 2.58 s; 6 sound, 0.75 s; 5 music, 0.55 s)"
    )


def test_a_run_can_be_trained_from_either(
    tmp_path: Path, write_clip: WriteClip, standard_promotion: None
) -> None:
    """The same crops, bit by bit, hence the same losses."""
    rows = ["path,domain,dur_s"]  # lengths are known: how often a clip is drawn follows them
    for index in range(6):
        for name in (f"speech/{index}.wav", f"music/{index}.flac"):
            write_clip(name, 0.1 + 0.1 * index)
            rows.append(f"{name},{name.split('/')[0]},{0.1 + 0.1 * index}")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("\n".join(rows))
    pack(str(manifest), tmp_path / "out", num_shards=2, workers=2)
    task = tiny.generation(tiny.DECODER)
    params, frozen = tiny.drawn(task.init), tiny.frozen_parts()
    memory, key = task.init_memory(params), jax.random.key(0)
    loss = tiny.jit(task.loss)
    ours, theirs = (
        list(first_batches(root)) for root in (manifest, f"tfds:{tmp_path / 'out'}:train")
    )
    for one, other in zip(ours, theirs, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    losses = [
        [float(loss(params, frozen, memory, batch, key)[0]) for batch in stream]
        for stream in (ours, theirs)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("rate", "suffix"), [(48_000, "opus"), (48_000, "flac"), (44_100, "ogg"), (22_050, "wav")]
)
def test_crops_of_packed_clips_are_those_of_the_folder(
    tmp_path: Path, write_clip: WriteClip, rate: int, suffix: str
) -> None:
    for index in range(4):
        write_clip(f"in/speech/{index}.{suffix}", 0.5 + 0.00123 * index, rate)
    pack(str(tmp_path / "in"), tmp_path / "out", num_shards=2, workers=1)
    theirs, ours = (
        open_source(root) for root in (str(tmp_path / "in"), f"tfds:{tmp_path / 'out'}:train")
    )
    for seed in range(20):
        crops = [read_crop(s[seed % 4], 4_001, np.random.default_rng(seed)) for s in (theirs, ours)]
        assert crops[0].shape == crops[1].shape == (4_001,)
        # What float32 leaves of the resampler may fall on either side of a half.
        steps = np.rint(2**15 * (crops[0] - crops[1]))
        assert np.mean(steps == 0) > 0.98
        assert np.abs(steps).max() <= 1


def first_batches(root: object) -> Iterator[dict[str, np.ndarray]]:
    data = ConfigDict(
        {
            "root": str(root),
            "domain_weights": {"speech": 0.5, "music": 0.5},
            "validation_percent": 0.0,
            "gain_jitter_db": 6.0,
            "num_threads": 1,
        }
    )
    with closing(train_batches(data, 4, 2 * FRAME_SAMPLES, seed=3)) as batches:
        yield from (next(batches) for _ in range(2))


@pytest.mark.parametrize(
    ("rate", "channels", "suffix"), [(44_100, 2, "ogg"), (48_000, 1, "opus"), (8_000, 1, "wav")]
)
def test_packed_audio_is_32_khz_mono_flac(
    tmp_path: Path, write_clip: WriteClip, rate: int, channels: int, suffix: str
) -> None:
    path = write_clip(f"in/speech/a.{suffix}", 0.5, rate, channels)
    pack(str(tmp_path / "in"), tmp_path / "out", workers=1)
    clip = open_source(f"tfds:{tmp_path / 'out'}:train")[0]
    assert clip.audio[:4] == b"fLaC"
    assert (clip.native_sr, clip.dur_s) == (rate, 0.5)  # unknown to a folder, known from now on
    with clip.open() as file:
        assert (file.samplerate, file.channels, file.subtype) == (32_000, 1, "PCM_16")
        np.testing.assert_allclose(file.read(), read_audio(path), atol=2**-16, rtol=0)
        file.seek(15_000)
        assert len(file.read()) == 1_000


def test_peaks_are_clipped_not_wrapped(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    wave = np.array([0.5, 1.0, 1.5, -1.0, -1.5, 0.0])
    soundfile.write(tmp_path / "in" / "a.wav", wave, 32_000, subtype="FLOAT")
    pack(str(tmp_path / "in"), tmp_path / "out", workers=1)
    with open_source(f"tfds:{tmp_path / 'out'}:train")[0].open() as file:
        top = 1 - 2**-15
        assert file.read().tolist() == [0.5, top, top, -1.0, -1.0, 0.0]


def spoil_some(folder: Path, write_clip: WriteClip) -> list[str]:
    """Spoils clips in every way there is; returns their names."""
    (folder / "not-audio.wav").write_text("not audio")
    soundfile.write(folder / "empty.wav", np.zeros(0), 32_000)
    soundfile.write(folder / "nan1.wav", np.full(99, np.nan), 32_000, subtype="FLOAT")
    late = np.concatenate([np.zeros(70_000), [np.inf]])
    soundfile.write(folder / "nan2.wav", late, 32_000, subtype="FLOAT")
    for suffix in ("wav", "flac", "opus"):
        path = write_clip(f"in/cut.{suffix}", 1.0, 48_000)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (folder / "nothing.flac").touch()
    (folder / "lost.wav").symlink_to(folder / "nowhere.wav")
    (folder / "no text \udcff.wav").write_bytes((folder / "a.wav").read_bytes())
    return sorted(path.name for path in folder.iterdir() if path.name not in ("a.wav", "z.wav"))


def test_unreadable_clips_are_left_out_and_named(tmp_path: Path, write_clip: WriteClip) -> None:
    write_clip("in/a.wav")
    write_clip("in/z.wav")
    spoilt = spoil_some(tmp_path / "in", write_clip)
    report = pack(str(tmp_path / "in"), tmp_path / "out", num_shards=len(spoilt) + 2, workers=2)
    source = open_source(f"tfds:{tmp_path / 'out'}:train")
    assert [clip.path for clip in source.clips] == ["a.wav", "z.wav"]
    assert [source[index].path for index in range(2)] == ["a.wav", "z.wav"]
    dropped = [path for path, _ in report.dropped]
    assert dropped == [name.replace("\udcff", "\\udcff") for name in spoilt]
    lines = str(report).splitlines()
    assert lines[0] == "packed 2 clips, 0.4 s (2 other, 0.4 s)"
    told = "\n".join(lines[1:])
    assert "left out 2: is damaged or cut short: copy or download it again (cut.flac, cut." in told
    assert "left out 2: holds NaN or infinite samples: export it again (nan1.wav, nan2.wav)" in told
    assert "left out 1: cannot be read: no such file or directory;" in told and "lost.wav" in told
    assert "left out 1: its name or text is not UTF-8" in told
    assert str(tmp_path) not in told


def test_a_report_names_the_first_clips_of_each_reason() -> None:
    dropped = [(f"{i}.wav", "holds no audio") for i in range(1_200)] + [("x.wav", "is damaged")]
    report = Report({"speech": 1_000}, {"speech": 7_200.0}, dropped)
    assert str(report).splitlines() == [
        "packed 1,000 clips, 2.0 h (1,000 speech, 2.0 h)",
        "left out 1,200: holds no audio (0.wav, 1.wav, 2.wav, ...)",
        "left out 1: is damaged (x.wav)",
    ]


@pytest.mark.parametrize("count", [0, 4, 5, 12, 22])
def test_a_broken_run_goes_on_to_the_same_data_set(
    corpus: Path,
    tmp_path: Path,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    out, packed = tmp_path / "out", []

    def pack_some(clip: Clip) -> Clip:
        if len(packed) == count:
            raise KeyboardInterrupt
        packed.append(clip.path)
        return genuine(clip)

    genuine = packing._packed
    monkeypatch.setattr(packing, "_packed", pack_some)
    with pytest.raises(KeyboardInterrupt):
        pack(str(corpus), out, SHARDS, workers=1)
    assert not out.exists()
    (tmp_path / "out.packing" / "data" / ".1234.part").write_text("what a killed process leaves")
    count, first = -1, len(packed)
    pack(str(corpus), out, SHARDS, workers=1)
    assert files_of(out) == whole
    assert not (tmp_path / "out.packing").exists()
    assert len(packed) - first == 23 - max(i for i in (0, 4, 9, 13, 18) if i <= first)


def test_a_killed_process_leaves_nothing_that_misleads(
    corpus: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    code = f"""
import itertools, os, signal
from pathlib import Path
from gac_jax.data import packing
genuine, count = packing._packed, itertools.count()
def packed(clip):
    return os.kill(os.getpid(), signal.SIGKILL) if next(count) == 11 else genuine(clip)
packing._packed = packed
packing.pack({str(corpus)!r}, Path({str(out)!r}), {SHARDS}, workers=1)
"""
    ended = subprocess.run([sys.executable, "-c", code], timeout=280, check=False)
    assert ended.returncode == -signal.SIGKILL
    with pytest.raises(UserError, match="no data set"):
        open_source(f"tfds:{out}:train")
    pack(str(corpus), out, SHARDS, workers=1)
    assert files_of(out) == whole


def test_number_of_workers_does_not_matter(
    corpus: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    pack(str(corpus), tmp_path / "out", SHARDS, workers=4)
    assert files_of(tmp_path / "out") == whole


def test_a_finished_run_may_be_given_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pack(str(corpus), tmp_path / "out", SHARDS, workers=1)
    before = files_of(tmp_path / "out")
    monkeypatch.setattr(packing, "_packed", lambda clip: pytest.fail("packs again"))
    assert pack(str(corpus), tmp_path / "out", SHARDS, workers=1) == first
    assert files_of(tmp_path / "out") == before


def test_data_sets_can_be_joined(corpus: Path, tmp_path: Path, write_clip: WriteClip) -> None:
    write_clip("more/speech/new.wav")
    pack(str(corpus), tmp_path / "one", workers=1)
    root = f"tfds:{tmp_path / 'one'}:train,{tmp_path / 'more'}"
    pack(root, tmp_path / "two", num_shards=2, workers=1)
    one, two = (open_source(f"tfds:{tmp_path / name}:train") for name in ("one", "two"))
    assert [two[i] for i in range(23)] == [one[i] for i in range(23)]
    assert (len(two), two[23].path) == (24, "speech/new.wav")


def test_another_data_set_is_not_overwritten(corpus: Path, tmp_path: Path) -> None:
    pack(str(corpus), tmp_path / "out", SHARDS, workers=1)
    before = files_of(tmp_path / "out")
    with pytest.raises(UserError, match="out: exists, and is of other clips or shards"):
        pack(str(corpus), tmp_path / "out", SHARDS + 1, workers=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    with pytest.raises(UserError, match="mine: exists"):
        pack(str(corpus), tmp_path / "mine", workers=1)
    assert files_of(tmp_path / "out") == before and len(files_of(tmp_path / "mine")) == 1


def test_unfinished_work_of_another_run_is_not_mixed_in(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "out.packing").mkdir()
    (tmp_path / "out.packing" / "digest").write_text("another")
    with pytest.raises(UserError, match=r"out\.packing: unfinished, of other clips or --shards"):
        pack(str(corpus), tmp_path / "out", workers=1)


def test_wrong_root_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        pack(str(tmp_path / "nowhere"), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_clips_without_one_that_reads_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.wav").write_text("not audio")
    with pytest.raises(UserError, match=r"none of the clips can be read: left out 1: .*b\.wav"):
        pack(str(tmp_path / "in"), tmp_path / "out", workers=1)
    assert os.listdir(tmp_path) == ["in"]


def test_a_disk_that_goes_away_is_no_corpus_of_damaged_clips(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "SUSPICIOUS", 5)
    monkeypatch.setattr(packing, "_packed", gone)
    with pytest.raises(UserError, match=r"speech/06\.wav: it and 6 clips before .* see to the"):
        pack(str(corpus), tmp_path / "out", num_shards=3, workers=1)


def gone(clip: Clip) -> Clip:
    raise UserError(f"cannot read {clip.audio}: input/output error")


def test_an_error_stops_the_other_threads(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, packed = packing._packed, []
    started, ending = threading.Event(), threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, **options: Any) -> None:
            ending.set()
            super().shutdown(**options)

    def pack_some(clip: Clip) -> Clip:
        if clip.path == "speech/00.wav":
            assert started.wait(timeout=280)
            raise MemoryError
        started.set()
        assert ending.wait(timeout=280)
        packed.append(clip.path)
        return genuine(clip)

    monkeypatch.setattr(packing, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(packing, "_packed", pack_some)
    with pytest.raises(MemoryError):
        pack(str(corpus), tmp_path / "out", num_shards=2, workers=2)
    assert len(packed) == 1  # the other thread ends with the clip that it is at


def test_full_disk_is_told(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, *_: Any) -> None:
            pass

        def write(self, _: bytes) -> None:
            raise RuntimeError("write() failed: No space left on device")

        def close(self) -> None:
            pass

    monkeypatch.setattr(packing, "ArrayRecordWriter", Full)
    with pytest.raises(UserError, match="data: cannot be written .*No space left"):
        pack(str(corpus), tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_place_that_cannot_be_written_is_told(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        pack(str(corpus), tmp_path / "file" / "out", workers=1)


def test_metadata_tells_what_was_dropped(tmp_path: Path, write_clip: WriteClip) -> None:
    write_clip("in/a.wav")
    (tmp_path / "in" / "b.wav").write_text("not audio")
    report = pack(str(tmp_path / "in"), tmp_path / "out", workers=1)
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert metadata["dropped"] == [list(row) for row in report.dropped]
    assert report == pack(str(tmp_path / "in"), tmp_path / "out", workers=1)
