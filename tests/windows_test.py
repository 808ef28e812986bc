from collections.abc import Iterator

import numpy as np
import pytest

from gac_jax.rates import FRAME_SAMPLES
from gac_jax.windows import Window, cut, join
from gac_jax.windows import plan as plan_of_size

WINDOW, OVERLAP, BUCKETS = 128, 16, (32, 64, 128)
LENGTHS = [1, 31, 32, 33, WINDOW, WINDOW + 1, 2 * WINDOW - OVERLAP, 300]


def plan(num_frames: int) -> list[Window]:
    return plan_of_size(num_frames, WINDOW)


@pytest.mark.parametrize("size", [0, -16, 8, 100])
def test_impossible_windows_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        plan_of_size(10, size)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_small_windows_join_too(size: int, rng: np.random.Generator) -> None:
    wave = rng.standard_normal(100 * FRAME_SAMPLES).astype(np.float32)
    windows = plan_of_size(100, size)
    assert [f for w in windows for f in range(w.start, w.end)[w.kept]] == list(range(100))
    found = np.concatenate(list(join(zip(windows, cut([wave], windows), strict=True))))
    np.testing.assert_allclose(found, wave, atol=1e-6)


def blocks_of(wave: np.ndarray, rng: np.random.Generator, largest: int) -> Iterator[np.ndarray]:
    start = 0
    while start < wave.size:
        size = int(rng.integers(0, largest + 1))  # readers may also hand out empty blocks
        yield wave[start : start + size]
        start += size


def test_every_frame_is_kept_by_exactly_one_window() -> None:
    for num_frames in range(1, 1001):
        kept = [f for w in plan(num_frames) for f in range(w.start, w.end)[w.kept]]
        assert kept == list(range(num_frames)), num_frames


def test_windows_are_bounded_overlap_and_know_their_place() -> None:
    for num_frames in range(1, 1001):
        windows = plan(num_frames)
        assert [w.first for w in windows] == [True] + [False] * (len(windows) - 1)
        assert [w.last for w in windows] == [False] * (len(windows) - 1) + [True]
        assert all(w.frames == WINDOW for w in windows[:-1])
        assert OVERLAP * (len(windows) > 1) < windows[-1].frames <= WINDOW
        for left, right in zip(windows, windows[1:], strict=False):
            assert left.end - right.start == OVERLAP


def test_buckets_are_the_smallest_that_fit() -> None:
    sizes = [Window(0, n, WINDOW, True, True).bucket for n in range(1, WINDOW + 1)]
    assert set(sizes) == set(BUCKETS)
    assert all(min(b for b in BUCKETS if b >= n) == s for n, s in enumerate(sizes, 1))


@pytest.mark.parametrize("num_frames", LENGTHS)
@pytest.mark.parametrize("largest", [5_000, 400_000])
def test_cutting_a_stream_is_slicing_the_whole(
    rng: np.random.Generator, num_frames: int, largest: int
) -> None:
    wave = rng.standard_normal(num_frames * FRAME_SAMPLES - 1_234).astype(np.float32)
    windows = plan(num_frames)
    padded = np.concatenate([wave, np.zeros(WINDOW * FRAME_SAMPLES, np.float32)])
    pieces = list(cut(blocks_of(wave, rng, largest), windows))
    assert len(pieces) == len(windows)
    for window, piece in zip(windows, pieces, strict=True):
        assert piece.shape == (window.bucket * FRAME_SAMPLES,) and piece.dtype == np.float32
        size = window.frames * FRAME_SAMPLES
        np.testing.assert_array_equal(piece[:size], padded[window.start * FRAME_SAMPLES :][:size])
        assert not piece[size:].any()


def test_cutting_reads_no_further_than_the_window() -> None:
    """What was read and not yet handed out is what is held: less than one window and a block."""
    block, windows, read = np.ones(10_000, np.float32), plan(1_000), 0

    def stream() -> Iterator[np.ndarray]:
        nonlocal read
        for _ in range(256):
            read += block.size
            yield block

    for window, _ in zip(windows, cut(stream(), windows), strict=True):
        assert read < window.end * FRAME_SAMPLES + block.size


def test_samples_beyond_the_plan_are_left_out() -> None:
    piece = next(cut([np.ones(5 * FRAME_SAMPLES, np.float32)], plan(2)))
    np.testing.assert_array_equal(piece, np.arange(piece.size) < 2 * FRAME_SAMPLES)


def test_a_cut_window_is_the_caller_s_own(rng: np.random.Generator) -> None:
    wave = rng.standard_normal(200 * FRAME_SAMPLES).astype(np.float32)
    windows, clean = plan(200), []
    for piece in cut([wave.copy()], windows):
        clean.append(piece.copy())
        piece[:] = np.nan
    np.testing.assert_array_equal(clean, list(cut([wave], windows)))


def joined(wave: np.ndarray, num_frames: int) -> np.ndarray:
    windows = plan(num_frames)
    pieces = list(cut([wave], windows))
    for window, piece in zip(windows, pieces, strict=True):
        piece[window.frames * FRAME_SAMPLES :] = np.nan  # padding must not be heard
    return np.concatenate(list(join(zip(windows, pieces, strict=True))))


@pytest.mark.parametrize("num_frames", LENGTHS)
def test_cross_fade_weights_sum_to_1(num_frames: int) -> None:
    ones = np.ones(num_frames * FRAME_SAMPLES, np.float32)
    found = joined(ones, num_frames)
    assert found.shape == ones.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, 1.0, atol=1e-6)


@pytest.mark.parametrize("num_frames", LENGTHS)
def test_joining_what_was_cut_gives_the_signal_back(
    rng: np.random.Generator, num_frames: int
) -> None:
    wave = rng.standard_normal(num_frames * FRAME_SAMPLES).astype(np.float32)
    np.testing.assert_allclose(joined(wave, num_frames), wave, atol=1e-6)


def test_a_seam_changes_smoothly_from_one_window_to_the_next() -> None:
    windows = plan(200)
    pieces = [
        np.full(w.bucket * FRAME_SAMPLES, value) for w, value in zip(windows, (0, 1), strict=True)
    ]
    heard = np.concatenate(list(join(zip(windows, np.float32(pieces), strict=True))))
    assert (np.diff(heard) >= 0).all() and np.diff(heard).max() < 1e-3
    middle = (windows[1].start + OVERLAP // 2) * FRAME_SAMPLES
    # Each window is heard alone wherever it alone decided the codes.
    assert not heard[: middle - FRAME_SAMPLES].any()
    assert (heard[middle + FRAME_SAMPLES :] == 1).all()


def test_a_seam_of_unlike_windows_is_as_loud_as_they_are(rng: np.random.Generator) -> None:
    windows = plan(200)
    shape = (len(windows), WINDOW * FRAME_SAMPLES)
    pieces = rng.standard_normal(shape).astype(np.float32)
    heard = np.concatenate(list(join(zip(windows, pieces, strict=True))))
    middle = (windows[1].start + OVERLAP // 2) * FRAME_SAMPLES
    seam = heard[middle - FRAME_SAMPLES // 4 : middle + FRAME_SAMPLES // 4]
    assert abs(10 * np.log10(np.mean(np.square(seam)))) < 0.6  # plainly faded: -3 dB


def test_joining_hands_out_audio_as_soon_as_it_is_final() -> None:
    windows = plan(400)
    samples = np.zeros(WINDOW * FRAME_SAMPLES, np.float32)
    stream = join((window, samples) for window in windows)
    heard = 0
    for window, block in zip(windows, stream, strict=True):
        heard += block.size
        assert heard >= (window.end - OVERLAP) * FRAME_SAMPLES
