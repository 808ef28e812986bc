import numpy as np
import pytest

from gac_jax.signal.loudness import BLOCK_SAMPLES, block_levels, gain_curve, normalise, restored


def blocks_of(levels_db: list[float], tail: int = 0) -> np.ndarray:
    """A square wave with the given RMS in each block; the last block loses `tail` samples."""
    rms = np.repeat(10 ** (np.array(levels_db) / 20), BLOCK_SAMPLES)[: -tail or None]
    return (rms * np.where(np.arange(len(rms)) % 2, 1, -1)).astype(np.float32)


@pytest.mark.parametrize(
    ("decibels", "level"), [(0, 240), (-20, 200), (-20.2, 200), (-119.6, 1), (7.5, 255), (30, 255)]
)
def test_a_level_counts_half_decibels_re_full_scale(decibels: float, level: int) -> None:
    levels, num_samples = block_levels([blocks_of([decibels])])
    assert levels.tolist() == [level] and levels.dtype == np.uint8
    assert num_samples == BLOCK_SAMPLES


@pytest.mark.parametrize("decibels", [-119.8, -300])
def test_only_digital_silence_is_level_zero(decibels: float) -> None:
    levels, _ = block_levels([blocks_of([decibels, -60])])
    assert levels.tolist() == [0, 120]


def test_a_last_short_block_is_measured_over_its_own_samples() -> None:
    levels, num_samples = block_levels([blocks_of([-20, -26], tail=BLOCK_SAMPLES - 5)])
    assert levels.tolist() == [200, 188] and num_samples == BLOCK_SAMPLES + 5


@pytest.mark.parametrize("size", [1000, 99_999, BLOCK_SAMPLES, 5 * BLOCK_SAMPLES])
def test_levels_do_not_depend_on_how_the_stream_is_cut(rng: np.random.Generator, size: int) -> None:
    wave = (rng.standard_normal(700_001) * np.linspace(0.01, 1, 700_001)).astype(np.float32)
    whole, _ = block_levels([wave])
    pieces = [wave[:0], *(wave[i : i + size] for i in range(0, len(wave), size)), wave[:0]]
    levels, num_samples = block_levels(pieces)
    np.testing.assert_array_equal(levels, whole)
    assert num_samples == len(wave) and len(levels) == 3


def test_an_empty_stream_has_no_levels() -> None:
    levels, num_samples = block_levels([])
    assert levels.shape == (0,) and levels.dtype == np.uint8 and num_samples == 0


@pytest.mark.parametrize(
    ("given", "limited"),
    [
        ([0, -10, -22, -10], [240, 220, 196, 220]),  # within 12 dB: untouched
        ([-80, 0, -80, -80], [216, 240, 216, 192]),  # the quieter side is raised
        ([0, -300, -60], [240, 0, 192]),  # silence stays, and carries the slope
    ],
)
def test_neighbours_differ_by_twelve_decibels_at_most(
    given: list[float], limited: list[int]
) -> None:
    levels, _ = block_levels([blocks_of(given)])
    assert levels.tolist() == limited


def test_gain_is_the_level_at_centres_and_linear_in_decibels_between() -> None:
    levels = np.array([200, 220, 212], np.uint8)
    curve = gain_curve(levels, 0, 3 * BLOCK_SAMPLES + 9)
    assert curve.dtype == np.float32 and len(curve) == 3 * BLOCK_SAMPLES + 9
    decibels = 20 * np.log10(curve)
    half = BLOCK_SAMPLES // 2
    for position, expected in [(0, -20), (half, -20), (2 * half, -15), (3 * half, -10)]:
        np.testing.assert_allclose(decibels[position], expected, atol=1e-3)
    np.testing.assert_allclose(decibels[5 * half :], -14, atol=1e-3)
    assert np.abs(np.diff(decibels)).max() < 1e-4


def test_gain_is_zero_in_silent_blocks_and_ignores_them_elsewhere() -> None:
    curve = gain_curve(np.array([0, 200, 0, 180, 0], np.uint8), 0, 5 * BLOCK_SAMPLES)
    sounding = curve.reshape(5, -1) > 0
    assert sounding.all(axis=1).tolist() == [False, True, False, True, False]
    assert sounding.any(axis=1).tolist() == [False, True, False, True, False]
    decibels = 20 * np.log10(curve.reshape(5, -1)[[1, 3]])
    np.testing.assert_allclose(decibels[0, 0], -20, atol=1e-3)
    np.testing.assert_allclose(decibels[0, -1], -22.5, atol=1e-3)  # towards -30 dB, 2 blocks on
    np.testing.assert_allclose(decibels[1, -1], -30, atol=1e-3)


def test_the_last_block_goes_on_beyond_its_end() -> None:
    sounding = gain_curve(np.array([0, 200], np.uint8), 0, 3 * BLOCK_SAMPLES).reshape(3, -1) > 0
    assert sounding.all(axis=1).tolist() == [False, True, True]
    silent = gain_curve(np.array([200, 0], np.uint8), 0, 3 * BLOCK_SAMPLES).reshape(3, -1) == 0
    assert silent.all(axis=1).tolist() == [False, True, True]


def test_all_silence_has_no_gain() -> None:
    assert not gain_curve(np.zeros(2, np.uint8), 0, 100).any()


def test_any_window_of_the_curve_equals_the_whole() -> None:
    levels = np.array([100, 0, 255, 240], np.uint8)
    whole = gain_curve(levels, 0, 5 * BLOCK_SAMPLES)
    start = 2 * BLOCK_SAMPLES - 1234
    window = gain_curve(levels, start, BLOCK_SAMPLES)
    np.testing.assert_array_equal(window, whole[start : start + BLOCK_SAMPLES])


def test_dividing_by_the_curve_brings_audio_near_unit_rms(rng: np.random.Generator) -> None:
    loudness = 10 ** (np.array([-10.0, -30.0, -90.0, -20.0]) / 20)
    wave = np.repeat(loudness, BLOCK_SAMPLES) * rng.standard_normal(4 * BLOCK_SAMPLES)
    levels, _ = block_levels([wave.astype(np.float32)])
    scaled = wave / gain_curve(levels, 0, len(wave))
    blocks = scaled.reshape(16, -1)  # quarters of blocks
    rms = 20 * np.log10(np.sqrt(np.mean(blocks**2, axis=1)))
    assert rms.max() < 6.1  # half of the 12 dB that neighbours may differ
    np.testing.assert_array_equal(scaled * gain_curve(levels, 0, len(wave)) > 0, wave > 0)


def test_a_piece_is_divided_by_its_place_on_the_curve() -> None:
    wave = blocks_of([-20, -30, -300])
    levels, _ = block_levels([wave])
    whole = normalise(wave, levels, 0)
    np.testing.assert_allclose(
        whole[: 2 * BLOCK_SAMPLES] * gain_curve(levels, 0, 2 * BLOCK_SAMPLES),
        wave[: 2 * BLOCK_SAMPLES],
        rtol=1e-6,
    )
    assert not whole[2 * BLOCK_SAMPLES :].any()
    start = BLOCK_SAMPLES - 700
    np.testing.assert_array_equal(
        normalise(wave[start : start + 1_400], levels, start), whole[start : start + 1_400]
    )


def test_restored_blocks_are_the_wave_times_its_gain_up_to_its_end(
    rng: np.random.Generator,
) -> None:
    levels, wave = np.asarray([200, 220], np.uint8), rng.standard_normal(500_000)
    blocks = np.split(wave.astype(np.float32), [100_000, 330_000])
    found = np.concatenate(list(restored(blocks, levels, 400_001)))
    expected = wave[:400_001].astype(np.float32) * gain_curve(levels, 0, 400_001)
    np.testing.assert_array_equal(found, expected)
