import jax.numpy as jnp
import numpy as np
import pytest
from scipy.fft import dct, dctn

from gac_jax.signal.cepstrum import cepstrum, ripples


def test_all_coefficients_are_those_of_scipy(rng: np.random.Generator) -> None:
    log_mel = rng.standard_normal((2, 12, 10)).astype(np.float32)
    found = np.asarray(cepstrum(jnp.asarray(log_mel), frames=4, features=40))
    expected = dctn(log_mel.reshape(2, 3, 4, 10), axes=(2, 3), norm="ortho").reshape(2, 3, 40)
    # In another order: that of the modulations' cost.
    np.testing.assert_allclose(np.sort(found), np.sort(expected), atol=1e-5)
    np.testing.assert_allclose(found[..., 0], expected[..., 0], atol=1e-5)


def test_white_patches_keep_their_variance(rng: np.random.Generator) -> None:
    log_mel = rng.standard_normal((8, 800, 16)).astype(np.float32)
    found = cepstrum(jnp.asarray(log_mel), frames=4, features=12)
    assert found.shape == (8, 200, 12)
    assert float(jnp.var(found)) == pytest.approx(12 / 64, rel=0.05)


def test_smooth_patches_are_told_by_the_first_coefficients() -> None:
    time, band = np.meshgrid(np.arange(4), np.arange(64), indexing="ij")
    patch = np.cos(band / 10.0) + 0.3 * time * np.exp(-((band - 20.0) ** 2) / 200.0)
    coefficients = np.asarray(cepstrum(jnp.asarray(patch[None], jnp.float32), 4, 256))[0, 0]
    power = np.square(coefficients)
    assert power[:64].sum() > 0.98 * power.sum()


def test_patches_do_not_mix(rng: np.random.Generator) -> None:
    log_mel = rng.standard_normal((1, 8, 16)).astype(np.float32)
    other = log_mel.copy()
    other[:, 4:] += 1.0
    first, second = (np.asarray(cepstrum(jnp.asarray(x), 4, 8)) for x in (log_mel, other))
    np.testing.assert_array_equal(first[:, 0], second[:, 0])
    assert (first[:, 1] != second[:, 1]).any()


def test_ripples_are_coefficients_of_scipy_of_the_mean_over_time(rng: np.random.Generator) -> None:
    level = rng.standard_normal((2, 16, 160)).astype(np.float32)
    found = ripples(jnp.asarray(level), frames=8, features=64)
    expected = dct(level.reshape(2, 2, 8, 160).mean(axis=2), norm="ortho")[..., 24:88]
    np.testing.assert_allclose(found, expected * np.sqrt(64 / 160), atol=1e-5)


def test_ripples_tell_the_pitch_of_a_voice() -> None:
    """A comb of partials ripples at twice the bins over its spacing, whatever the envelope is."""
    hertz = 25.0 * np.arange(160)
    for pitch in (100.0, 150.0, 250.0):
        level = 2.0 * np.cos(2 * np.pi * hertz / pitch) - hertz / 1000.0
        found = np.asarray(ripples(jnp.asarray(level[None, None], jnp.float32), 1, 64))[0, 0]
        assert 24 + int(np.argmax(np.abs(found))) == pytest.approx(2 * 4_000 / pitch, abs=1)
