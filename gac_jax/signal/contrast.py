"""The shape of spectra above 4 kHz, made as marked as in real audio.

A decoder of modest size, sampled below a temperature of 1, averages over what it cannot know: what
it says is right in the mean and varies too little. Speech synthesis calls that a lack of global
variance and gives it back after decoding (Toda and Tokuda, 2007). Below 4 kHz voices have the
partials of `gac_jax.signal.voicing`, and more contrast gained nothing.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from gac_jax.signal.log_spectrum import BANDS, FLOOR, LINEAR_BANDS

NARROW, WIDE = 1.5, 20.0  # deviations of Gaussians, in bands: between them lies what is meant
HEARD = 0.5  # above the floor, in natural log; bands below have no shape, and lend none
_LEAST = 1e-3  # weight of a mean, so that none is divided by nothing


def contrasted(level: jax.Array, contrast: jax.Array) -> jax.Array:
    """Multiplies how far bands above 4 kHz stand out from those around them.

    Bands at the floor are left out of all means, so that the edge of a band-limited recording
    stays where it is and as it is.

    Args:
      level: (B, T, 640) float32, see `gac_jax.signal.log_spectrum`.
      contrast: () float32; 1 changes nothing.

    Returns:
      (B, T, 640) float32.
    """
    rows = level.reshape(level.shape[0], -1, BANDS)
    bands = rows[:, :, LINEAR_BANDS:]
    heard = jnp.clip(bands - (np.float32(np.log(FLOOR)) + HEARD), 0.0, 1.0)
    shape = _mean(bands, heard, NARROW) - _mean(bands, heard, WIDE)
    bands = bands + (contrast - 1.0) * heard * shape
    return jnp.concatenate([rows[:, :, :LINEAR_BANDS], bands], axis=-1).reshape(level.shape)


def _mean(bands: jax.Array, weight: jax.Array, deviation: float) -> jax.Array:
    """Gaussian means around each band of (B, S, 160), of bands with weight; 0 where none has."""
    kernel = _gaussian(deviation)

    def around(x: jax.Array) -> jax.Array:
        return jnp.einsum("bsf,fg->bsg", x, kernel, precision="highest")

    return around(weight * bands) / jnp.maximum(around(weight), _LEAST)


@lru_cache(maxsize=2)
def _gaussian(deviation: float) -> np.ndarray:
    """(160, 160) float32, symmetric."""
    band = np.arange(BANDS - LINEAR_BANDS)
    return np.exp(-0.5 * np.square((band[:, None] - band) / deviation)).astype(np.float32)
