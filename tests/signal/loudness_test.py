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


def restore(decoded: np.ndarray, levels: list[int], cuts: tuple[int, ...] = ()) -> np.ndarray:
    blocks = np.split(decoded, list(cuts))
    return np.concatenate(list(restored(blocks, np.array(levels, np.uint8), len(decoded))))


def decibels_of(wave: np.ndarray) -> np.ndarray:
    return np.asarray(20 * np.log10(np.abs(wave)))


def test_audio_of_unit_rms_is_multiplied_by_the_curve_up_to_its_end() -> None:
    levels, wave = np.array([200, 200, 0, 196], np.uint8), blocks_of([0, 0, 0, 0, 0])
    found = np.concatenate(list(restored([wave], levels, 4 * BLOCK_SAMPLES - 1)))
    expected = wave * gain_curve(levels, 0, len(wave))
    # Blocks 1 and 3 have slopes towards each other, of half a level on average.
    np.testing.assert_allclose(found, expected[: 4 * BLOCK_SAMPLES - 1], rtol=0.02)
    assert not found[2 * BLOCK_SAMPLES : 3 * BLOCK_SAMPLES].any()


@pytest.mark.parametrize("off", [-11, 3])
def test_what_is_decoded_too_loud_or_too_quiet_gets_its_level(off: float) -> None:
    found = decibels_of(restore(blocks_of([off] * 3), [200, 200, 200]))
    np.testing.assert_allclose(found, -20, atol=1e-3)


@pytest.mark.parametrize("off", [-30, 30])
def test_twelve_decibels_are_made_up_for_at_most(off: float) -> None:
    found = decibels_of(restore(blocks_of([off]), [200]))
    np.testing.assert_allclose(found, off - 20 - 12 * np.sign(off), atol=1e-3)


def test_the_correction_is_linear_in_decibels_between_centres() -> None:
    found = decibels_of(restore(blocks_of([2, -3, -3]), [200, 200, 200]))
    moved = found - decibels_of(blocks_of([2, -3, -3])) + 20
    half = BLOCK_SAMPLES // 2
    for position, expected in [(0, -2), (half, -2), (2 * half, 0.5), (3 * half, 3), (-1, 3)]:
        np.testing.assert_allclose(moved[position], expected, atol=1e-3)
    assert np.abs(np.diff(moved)).max() < 1e-4


def test_silence_that_was_decoded_stays_silence() -> None:
    assert not restore(np.zeros(2 * BLOCK_SAMPLES, np.float32), [200, 200]).any()


@pytest.mark.parametrize(
    ("levels", "tail"),
    [
        ([200, 0], 0),  # silent
        ([200, 176], 0),  # raised: it may have been much quieter
        ([230, 240], BLOCK_SAMPLES - 9),  # nine samples are no measurement
    ],
)
def test_a_block_whose_level_is_no_measurement_goes_by_the_one_before(
    levels: list[int], tail: int
) -> None:
    decoded = blocks_of([2, -4], tail)
    curve = gain_curve(np.array(levels, np.uint8), 0, len(decoded))
    moved = decibels_of(restore(decoded, levels)[curve > 0] / (decoded * curve)[curve > 0])
    assert moved[0] < -0.5
    np.testing.assert_allclose(moved, moved[0], atol=1e-3)


def test_what_is_restored_does_not_depend_on_how_it_is_cut(rng: np.random.Generator) -> None:
    levels, wave = [200, 220, 0, 212], rng.standard_normal(1_200_000).astype(np.float32)
    whole = restore(wave, levels)
    cut = restore(wave, levels, (0, 9, 100_000, 330_000, 330_000, 1_199_999))
    np.testing.assert_array_equal(cut, whole)


def test_a_stream_without_samples_is_restored_to_one() -> None:
    assert restore(np.zeros(0, np.float32), []).shape == (0,)
