import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax.signal.griffin_lim import griffin_lim
from gac_jax.signal.stft import stft
from tests.tiny import jit

restore = jit(griffin_lim)
RATE = 32_000


def voice(seconds: float = 1.0) -> np.ndarray:
    """Partials of a gliding tone that swells and fades, of unit RMS."""
    time = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * (150 * time + 20 * time**2)
    wave = sum(np.sin(k * phase) / k for k in range(1, 20)) * (1.2 + np.sin(9 * time))
    return (wave / np.sqrt(np.mean(wave**2)))[None].astype(np.float32)


def mismatch(wave: np.ndarray, magnitude: np.ndarray) -> float:
    error = np.abs(np.asarray(stft(jnp.asarray(wave)))) - magnitude
    return float(np.sqrt(np.mean(error**2) / np.mean(magnitude**2)))


def test_the_magnitudes_come_out(rng: np.random.Generator) -> None:
    wave = voice()
    magnitude = np.abs(np.asarray(stft(jnp.asarray(wave))))
    start = rng.standard_normal(wave.shape).astype(np.float32)
    found = np.asarray(restore(magnitude, start))
    assert found.shape == wave.shape and found.dtype == np.float32
    assert mismatch(found, magnitude) < 0.2 < 0.4 * mismatch(start, magnitude)


def test_right_phases_stay(rng: np.random.Generator) -> None:
    wave = voice()
    magnitude = np.abs(np.asarray(stft(jnp.asarray(wave))))
    np.testing.assert_allclose(restore(magnitude, wave), wave, atol=1e-3)


def test_silence_is_silent_and_finite(rng: np.random.Generator) -> None:
    start = rng.standard_normal((1, 6400)).astype(np.float32)
    assert not np.asarray(restore(np.zeros((1, 20, 641), np.float32), start)).any()
    assert np.isfinite(restore(np.ones((1, 20, 641), np.float32), np.zeros((1, 6400)))).all()


@pytest.mark.parametrize("shared", [32])  # spectra, 320 ms, what two windows of the codec share
def test_overlapping_windows_agree_in_the_middle(rng: np.random.Generator, shared: int) -> None:
    """Else cross-fading them would cancel."""
    wave, start = voice(2.0), rng.standard_normal((1, 64_000)).astype(np.float32)
    magnitude = np.abs(np.asarray(stft(jnp.asarray(wave))))
    cut = 100 + shared // 2, 100 - shared // 2
    left = np.asarray(restore(magnitude[:, : cut[0]], start[:, : 320 * cut[0]]))
    right = np.asarray(restore(magnitude[:, cut[1] :], start[:, 320 * cut[1] :]))
    quarter = 320 * shared // 4
    ours, theirs = left[0, -3 * quarter : -quarter], right[0, quarter : 3 * quarter]
    assert np.corrcoef(ours, theirs)[0, 1] > 0.95
