import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax.signal.log_spectrum import (
    BANDS,
    FLOOR,
    LINEAR_BANDS,
    LOUDEST,
    log_spectrum,
    magnitudes,
    partials,
)
from gac_jax.signal.stft import stft
from tests.tiny import jit

SECOND = 32_000
analyse = jit(log_spectrum)


def tone(hertz: float) -> np.ndarray:
    return np.sqrt(2) * np.sin(2 * np.pi * hertz * np.arange(SECOND) / SECOND)[None]


def test_partials_are_the_single_bins_of_both_halves_of_a_frame(rng: np.random.Generator) -> None:
    level = jnp.asarray(rng.standard_normal((2, 3, 640)), jnp.float32)
    found = partials(level)
    assert found.shape == (2, 6, LINEAR_BANDS)
    np.testing.assert_array_equal(found[:, ::2], level[:, :, :LINEAR_BANDS])
    np.testing.assert_array_equal(found[:, 1::2], level[:, :, BANDS : BANDS + LINEAR_BANDS])


def test_white_noise_is_flat_and_at_zero(rng: np.random.Generator) -> None:
    level = analyse(jnp.asarray(rng.standard_normal((4, SECOND)), jnp.float32))
    assert level.shape == (4, 50, 640) and level.dtype == jnp.float32
    power = np.exp(2 * np.asarray(level)[:, 2:-2]).reshape(-1, BANDS).mean(axis=0)
    np.testing.assert_allclose(power, 1.0, atol=0.35)
    assert power.mean() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("hertz", [100.0, 975.0, 3975.0])
def test_low_bands_are_single_bins(hertz: float) -> None:
    level = np.asarray(analyse(jnp.asarray(tone(hertz), jnp.float32)))[0, 25, :BANDS]
    peak = int(hertz / 25) - 1
    assert level.argmax() == peak < LINEAR_BANDS
    assert level[peak] - max(level[peak - 1], level[peak + 1]) == pytest.approx(np.log(2), abs=0.01)


def test_high_bands_widen_in_proportion(rng: np.random.Generator) -> None:
    """A tone three semitones higher peaks as many bands higher, wherever it starts."""
    peaks = [
        int(np.asarray(analyse(jnp.asarray(tone(f), jnp.float32)))[0, 25, :BANDS].argmax())
        for f in (5000.0, 5000.0 * 2**0.25, 5000.0 * 2**0.5, 10_000.0)
    ]
    steps = np.diff(peaks)
    assert abs(steps[0] - steps[1]) <= 1 and abs(steps[2] - 2 * steps[0]) <= 2
    assert steps[0] == pytest.approx(20, abs=1)  # 161 steps for two octaves


def test_the_halves_of_a_frame_follow_each_other() -> None:
    wave = np.zeros((1, 6400), np.float32)
    wave[0, 3200 + 480] = 100.0  # in the middle of the later half of frame 5
    level = np.asarray(analyse(jnp.asarray(wave)))[0].reshape(-1, BANDS).mean(axis=1)
    assert level.argmax() == 11
    assert level[10] == pytest.approx(level[12], abs=0.01)


def test_silence_is_at_the_floor_and_stays_silent() -> None:
    level = analyse(jnp.zeros((1, 6400)))
    np.testing.assert_allclose(level, np.log(FLOOR), rtol=1e-5)
    assert float(jnp.abs(magnitudes(level)).max()) < 1e-5


def test_what_no_audio_reaches_is_bounded() -> None:
    tallest = float(analyse(jnp.asarray(tone(1000.0), jnp.float32)).max())
    assert tallest == pytest.approx(3.0, abs=0.05) and tallest < LOUDEST
    assert float(magnitudes(jnp.full((1, 1, 640), 99.0)).max()) == pytest.approx(np.exp(LOUDEST))


def test_magnitudes_are_those_that_the_bands_resolve(rng: np.random.Generator) -> None:
    wave = jnp.asarray(rng.standard_normal((1, SECOND)), jnp.float32)
    true, found = np.abs(stft(wave)), np.asarray(jit(magnitudes)(analyse(wave)))
    assert found.shape == true.shape
    single = slice(1, LINEAR_BANDS)  # the last of them reaches into a wider one
    np.testing.assert_allclose(found[..., single], true[..., single], atol=2e-3)
    wide = np.mean(found[..., 320:] ** 2) / np.mean(true[..., 320:] ** 2)
    assert wide == pytest.approx(1.0, abs=0.15)
