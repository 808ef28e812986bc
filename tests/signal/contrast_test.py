import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax.signal.contrast import HEARD, contrasted
from gac_jax.signal.log_spectrum import BANDS, FLOOR, LINEAR_BANDS

WAVES = 8  # of a shape, over the bands above 4 kHz


def spectra(above: np.ndarray) -> jnp.ndarray:
    """(1, 4, 640): 8 spectra alike, flat up to 4 kHz, then as given, (160,)."""
    return jnp.asarray(np.tile(np.concatenate([np.zeros(LINEAR_BANDS), above]), (1, 4, 2)), "f4")


def above(level: jnp.ndarray) -> np.ndarray:
    return np.asarray(level).reshape(8, BANDS)[:, LINEAR_BANDS:]


def shape(waves: int = WAVES) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * waves * np.arange(BANDS - LINEAR_BANDS) / 160)


def test_of_one_changes_nothing(rng: np.random.Generator) -> None:
    level = jnp.asarray(rng.uniform(-7.0, 2.0, (2, 3, 2 * BANDS)), jnp.float32)
    np.testing.assert_array_equal(contrasted(level, jnp.float32(1.0)), level)


@pytest.mark.parametrize("contrast", [1.5, 2.0])
def test_multiplies_a_shape(contrast: float) -> None:
    new = above(contrasted(spectra(shape()), jnp.float32(contrast)))
    middle = slice(40, -40)  # ends have neighbours on one side
    np.testing.assert_allclose(
        new[:, middle], np.tile(contrast * shape(), (8, 1))[:, middle], atol=0.05
    )


def test_keeps_slopes_and_noise() -> None:
    """What is wider than a formant is no contrast, and what is finer is noise."""
    slope, fine = np.linspace(1.0, -1.0, 160), shape(waves=60)
    new = above(contrasted(spectra(slope + fine), jnp.float32(2.0)))
    np.testing.assert_allclose(new[:, 40:-40], np.tile(slope + fine, (8, 1))[:, 40:-40], atol=0.03)


def test_below_4_khz_nothing_changes(rng: np.random.Generator) -> None:
    level = jnp.asarray(rng.standard_normal((1, 2, 2 * BANDS)), jnp.float32)
    new = contrasted(level, jnp.float32(2.0))
    old, new = (np.asarray(x).reshape(4, BANDS)[:, :LINEAR_BANDS] for x in (level, new))
    np.testing.assert_array_equal(old, new)


def test_the_edge_of_a_narrow_band_stays() -> None:
    """A flat spectrum that ends at some frequency stays flat up to there, and silent above."""
    edge = np.where(np.arange(BANDS - LINEAR_BANDS) < 80, -1.0, np.log(FLOOR))
    new = above(contrasted(spectra(edge), jnp.float32(3.0)))
    np.testing.assert_allclose(new, np.tile(edge, (8, 1)), atol=1e-4)


def test_silence_stays_silent() -> None:
    level = spectra(np.full(BANDS - LINEAR_BANDS, np.log(FLOOR) + HEARD, np.float32))
    np.testing.assert_array_equal(contrasted(level, jnp.float32(3.0)), level)
