import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
from ml_collections import ConfigDict

from gac_jax.data.pipeline import split
from gac_jax.data.sources import DOMAINS, Clip, FileSource, open_source
from gac_jax.data.walk import choose, walk
from gac_jax.errors import UserError
from gac_jax.signal.audio_io import to_mono_32k

FRAME = 2560


def data(root: str = "", percent: float = 30.0, **weights: float) -> ConfigDict:
    weights = weights or dict.fromkeys(DOMAINS, 1.0)
    return ConfigDict(dict(root=root, validation_percent=percent, domain_weights=weights))


def clips(**counts: int) -> FileSource:
    return FileSource([Clip(f"{d}/{i}", d) for d, count in counts.items() for i in range(count)])


def chosen(source: FileSource, indices: list[int]) -> dict[str, int]:
    domains = [source.clips[i].domain for i in indices]
    return {name: domains.count(name) for name in DOMAINS if name in domains}


def test_all_clips_of_a_split_are_taken() -> None:
    source = clips(speech=30, sound=9)
    training, held_out = split(source.clips, 30.0)
    assert choose(source, data(), "held_out") == held_out and held_out
    assert choose(source, data(), "train") == training and training


def test_a_few_are_taken_evenly_as_far_as_they_go() -> None:
    source = clips(speech=300, sound=90, music=2)
    some = choose(source, data(percent=0.0), "train", 12)
    assert chosen(source, some) == {"speech": 5, "sound": 5, "music": 2}
    assert some == sorted(some) == choose(source, data(percent=0.0), "train", 12)
    assert np.max(some) > 20  # not the first of each
    assert set(some) < set(choose(source, data(percent=0.0), "train", 20))
    assert len(choose(source, data(percent=0.0), "train", 10_000)) == 392


def test_a_domain_without_weight_is_left_out() -> None:
    source = clips(speech=30, sound=30)
    found = choose(source, data(speech=1.0, sound=0.0), "held_out")
    assert set(chosen(source, found)) == {"speech"}


@pytest.mark.parametrize(("which", "percent"), [("held_out", 0.0), ("train", 100.0)])
def test_a_split_without_clips_is_refused(which: str, percent: float) -> None:
    with pytest.raises(UserError, match=f"bundled clips: no clip in the split {which}; change "):
        choose(clips(speech=3), data(percent=percent), which)


def test_pieces_are_the_clip_cut_up(tmp_path: Path, rng: np.random.Generator) -> None:
    wave = (0.1 * rng.standard_normal(10 * FRAME + 2_600)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 32_000, "FLOAT")
    pieces = list(walk(open_source(str(tmp_path)), [0], 4 * FRAME))
    assert [(p.clip, p.is_first, p.is_whole) for p in pieces] == [
        (0, True, False),
        (0, False, False),
        (0, False, False),
    ]
    for begin, piece in zip((0, 4 * FRAME, 8 * FRAME), pieces, strict=True):
        expected = wave[begin : begin + 4 * FRAME]
        np.testing.assert_allclose(piece.wave, expected / np.sqrt(np.mean(expected**2)), rtol=1e-4)
        assert piece.wave.dtype == np.float32


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_pieces_of_other_rates_meet_without_a_seam(
    tmp_path: Path, rng: np.random.Generator, rate: int
) -> None:
    audio = 0.1 * rng.standard_normal((rate, 2))
    soundfile.write(tmp_path / "a.wav", audio, rate, "FLOAT")
    pieces = [p.wave for p in walk(open_source(str(tmp_path)), [0], 4 * FRAME)]
    whole = to_mono_32k(audio.mean(axis=1).astype(np.float32), rate)
    assert [len(piece) for piece in pieces] == [10_240, 10_240, 10_240]  # 1280 are no frame
    for number, piece in enumerate(pieces):
        expected = whole[number * 10_240 : (number + 1) * 10_240]
        expected = expected / np.sqrt(np.mean(np.square(expected, dtype=np.float64)))
        np.testing.assert_allclose(piece, expected, atol=2e-3)


@pytest.mark.parametrize(
    ("samples", "lengths"),
    [
        (700, [700]),  # less than a frame, but all there is
        (4 * FRAME, [4 * FRAME]),
        (5 * FRAME - 1, [4 * FRAME]),
        (5 * FRAME, [4 * FRAME, FRAME]),
    ],
)
def test_a_rest_without_a_frame_is_left_out(
    tmp_path: Path, rng: np.random.Generator, samples: int, lengths: list[int]
) -> None:
    soundfile.write(tmp_path / "a.wav", 0.1 * rng.standard_normal(samples), 32_000)
    pieces = list(walk(open_source(str(tmp_path)), [0], 4 * FRAME))
    assert [len(p.wave) for p in pieces] == lengths
    assert pieces[0].is_whole == (samples <= 4 * FRAME)


def test_silence_stays_quiet(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(9_000, 1e-5), 32_000, "FLOAT")
    (piece,) = walk(open_source(str(tmp_path)), [0], 4 * FRAME)
    np.testing.assert_allclose(piece.wave, 1e-2, rtol=1e-4)


def test_a_clip_that_cannot_be_read_is_left_out_and_named(
    tmp_path: Path, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.wav").write_bytes(b"no audio")
    for name in ("b.wav", "c.wav"):
        soundfile.write(tmp_path / name, 0.1 * rng.standard_normal(9_000), 32_000)
    with caplog.at_level(logging.WARNING, "absl"):
        pieces = list(walk(open_source(str(tmp_path)), [0, 1, 2], 4 * FRAME))
    assert [p.clip for p in pieces] == [1, 2]
    assert "unreadable clip, left out: a.wav" in caplog.text
