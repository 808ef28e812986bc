import numpy as np
import pytest

from gac_jax.metrics.signal import (
    QUIETEST_LUFS,
    Signal,
    _k_weighting,
    bandwidth,
    log_mel_distance,
    loudness,
    si_sdr,
    stft_distance,
)
from gac_jax.rates import SAMPLE_RATE
from tests.metrics.excerpts import excerpt, noise_like, speech

SILENCE = np.zeros(SAMPLE_RATE, np.float32)


def tone(hertz: float, decibels: float = 0.0, seconds: float = 1.0) -> np.ndarray:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (10 ** (decibels / 20) * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


@pytest.fixture
def noise(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(SAMPLE_RATE).astype(np.float32)


def test_an_identical_clip_is_at_no_distance() -> None:
    wave = speech()
    found = Signal().measure(excerpt(wave, wave))
    assert found.pop("si_sdr_db") == pytest.approx(100)
    assert 4 < found.pop("bandwidth_khz") < 16
    assert list(found.values()) == [0, 0, 0, 0, 0]
    assert {*found, "si_sdr_db", "bandwidth_khz"} == {column.name for column in Signal.columns}


def test_white_noise_is_worse_than_a_little_noise_in_every_column() -> None:
    wave = speech()
    noise = noise_like(wave)
    little = Signal().measure(excerpt(wave, wave + 0.001 * noise))
    much = Signal().measure(excerpt(wave, noise))
    for column in Signal.columns:
        if column.higher_is_better is not None:
            sign = 1 if column.higher_is_better else -1
            assert sign * much[column.name] < sign * little[column.name], column.name


def test_what_silence_does_not_have_is_left_out(noise: np.ndarray) -> None:
    there = {"log_mel_db", "log_mel_multi_db", "loudness_lu"}
    assert set(Signal().measure(excerpt(SILENCE, SILENCE))) == there
    assert set(Signal().measure(excerpt(SILENCE, noise))) == {*there, "bandwidth_khz"}
    assert Signal().measure(excerpt(noise, SILENCE))["si_sdr_db"] == pytest.approx(-100)


def test_a_gain_is_its_decibels_in_every_mel_cell(noise: np.ndarray) -> None:
    quieter = noise * np.float32(10 ** (-3 / 20))
    assert log_mel_distance(noise, quieter) == pytest.approx(3, abs=1e-3)
    assert log_mel_distance(noise, quieter, 40, 512, 128) == pytest.approx(3, abs=1e-3)


def test_short_windows_see_a_gap_that_long_ones_smear(noise: np.ndarray) -> None:
    gap = noise.copy()
    gap[16_000:16_800] = 0
    short, long = (log_mel_distance(noise, gap, 40, n, n // 4) for n in (512, 2048))
    assert short > 2 * long > 0


def test_what_lies_sixty_decibels_below_the_peak_is_equal(noise: np.ndarray) -> None:
    reference = np.concatenate([10 * noise, SILENCE, SILENCE])
    late = np.concatenate([SILENCE, SILENCE, noise])
    assert log_mel_distance(reference, reference + 0.002 * late) == 0
    assert log_mel_distance(reference, reference + 0.1 * late) > 3


def test_a_gain_in_the_stft_distance_by_hand(noise: np.ndarray) -> None:
    """The norm of the difference is 1 - g of the norm; logarithms differ by -log g."""
    assert stft_distance(noise, noise / 2) == pytest.approx(0.5 + np.log(2), rel=1e-4)
    assert stft_distance(noise, -noise) == 0  # of magnitudes only
    late = SILENCE.copy()
    late[-1] = 1  # beyond the last whole window
    assert np.isnan(stft_distance(SILENCE, noise)) and np.isnan(stft_distance(late, noise))


def test_si_sdr_by_hand() -> None:
    """Noise at right angles to the tone and a tenth of it: 20 dB, whatever the gain and offset."""
    reference, other = tone(1000), tone(2000)
    decoded = reference + other / 10
    assert si_sdr(reference, decoded) == pytest.approx(20, abs=1e-3)
    assert si_sdr(reference, 1 - 5 * decoded) == pytest.approx(20, abs=1e-3)
    assert si_sdr(reference, other) < -60 and si_sdr(reference, SILENCE) == pytest.approx(-100)
    assert np.isnan(si_sdr(SILENCE, reference))


def test_bandwidth_ends_where_a_band_is_65_decibels_below_the_loudest(noise: np.ndarray) -> None:
    assert bandwidth(tone(1000) + tone(5000, -60)) == pytest.approx(5000, abs=50)
    assert bandwidth(tone(1000) + tone(5000, -70)) == pytest.approx(1000, abs=100)
    assert bandwidth(noise) == SAMPLE_RATE / 2
    assert np.isnan(bandwidth(SILENCE))


def test_k_weighting_is_the_table_of_bs_1770() -> None:
    """ITU-R BS.1770-4, tables 1 and 2: b0, b1, b2, a0, a1, a2 at 48 kHz."""
    shelf = [1.53512485958697, -2.69169618940638, 1.19839281085285]
    shelf += [1, -1.69065929318241, 0.73248077421585]
    high_pass = [1, -2, 1, 1, -1.99004745483398, 0.99007225036621]
    np.testing.assert_allclose(_k_weighting(48_000), [shelf, high_pass], rtol=1e-12)


@pytest.mark.parametrize("decibels", [0, -23])
def test_loudness_of_the_tone_in_the_standard(decibels: float) -> None:
    """A sine of 997 Hz at full scale reads -3.01 LUFS (BS.1770-4, annex 1)."""
    assert loudness(tone(997, decibels, 3)) == pytest.approx(decibels - 3.01, abs=0.03)
    assert loudness(tone(997, decibels, 0.2)) == pytest.approx(decibels - 3.01, abs=0.03)


def test_loudness_passes_over_pauses_and_quiet_parts() -> None:
    loud = tone(997, -20, 4)
    alone = loudness(loud)
    assert loudness(np.concatenate([loud, tone(997, -80, 4)])) == pytest.approx(alone, abs=0.2)
    assert loudness(np.concatenate([loud, tone(997, -40, 4)])) == pytest.approx(alone, abs=0.2)
    half = loudness(np.concatenate([loud, tone(997, -26, 4)]))  # not 10 LU below the mean
    assert half == pytest.approx(alone + 10 * np.log10((1 + 10**-0.6) / 2), abs=0.1)
    assert loudness(SILENCE) == QUIETEST_LUFS


def test_loudness_error_is_the_gain(noise: np.ndarray) -> None:
    for gain in (2.0, 0.5):
        found = Signal().measure(excerpt(noise, gain * noise))
        assert found["loudness_lu"] == pytest.approx(20 * np.log10(2), abs=1e-3)
    assert Signal().measure(excerpt(noise / 100, SILENCE))["loudness_lu"] > 25
