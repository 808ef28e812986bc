import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from gac_jax.signal.stft import HOP, WINDOW, istft, stft
from tests.tiny import jit


def noise(rng: np.random.Generator, frames: int, rows: int = 2) -> jax.Array:
    return jnp.asarray(rng.standard_normal((rows, frames * HOP)), jnp.float32)


def test_it_is_the_transform_of_scipy(rng: np.random.Generator) -> None:
    wave, frames = noise(rng, 9), 9
    window = scipy.signal.get_window("hann", WINDOW)
    padded = np.pad(np.asarray(wave, np.float64), ((0, 0), (480, 480)))
    starts = HOP * np.arange(frames)
    cut = np.stack([padded[:, s : s + WINDOW] for s in starts], axis=1)
    expected = np.fft.rfft(cut * window) / np.sqrt(np.sum(window**2))
    found = jit(stft)(wave)
    assert found.shape == (2, frames, WINDOW // 2 + 1) and found.dtype == jnp.complex64
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_noise_of_unit_rms_has_unit_power(rng: np.random.Generator) -> None:
    power = np.square(np.abs(jit(stft)(noise(rng, 400))))[:, 4:-4, 1:-1]
    assert power.mean() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("frames", [1, 2, 5, 40])
def test_the_inverse_is_exact(rng: np.random.Generator, frames: int) -> None:
    wave = noise(rng, frames)
    np.testing.assert_allclose(jit(istft)(jit(stft)(wave)), wave, atol=1e-4)


def test_the_inverse_is_the_nearest_waveform(rng: np.random.Generator) -> None:
    """No other waveform's transform is nearer: the error is orthogonal to all transforms."""
    shape = (1, 12, WINDOW // 2 + 1)
    target = jnp.asarray(
        rng.standard_normal(shape) + 1j * rng.standard_normal(shape), jnp.complex64
    )

    def distance(wave: jax.Array) -> jax.Array:
        error = jnp.square(jnp.abs(stft(wave) - target))
        # Of the two-sided spectrum, of which all but the ends are counted once here.
        return jnp.sum(2.0 * error) - jnp.sum(error[..., 0]) - jnp.sum(error[..., -1])

    best = jit(istft)(target)
    slope, away = jit(jax.grad(distance))(best), jit(jax.grad(distance))(best + 0.1)
    assert float(jnp.abs(slope).max()) < 0.01 * float(jnp.abs(away).max())
