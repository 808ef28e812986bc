"""Partials for decoded voices: a comb of the pitch that the codes tell.

A flow decoder of modest size tells the envelope of a voice and blurs its partials: it sounds
hoarse. As speech codecs with a sinusoidal model do (McAulay and Quatieri, 1986), the fine structure
of voiced spectra is made from the pitch instead, with the power that the decoder gave each region.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from gac_jax.signal.log_spectrum import BANDS, LINEAR_BANDS
from gac_jax.signal.pitch import Pitch, comb, hertz, ripple

DEPTH = 2.5  # of a clear voice's comb at 0 Hz
UNSURE = 0.5  # strength of a voice that gets no comb; single notes in music reach it
FADE = 3000.0  # hertz, over which combs fade: upper partials are blurred in real voices too
KEPT = 0.5  # of what the decoder says beside the comb
REGION = 16  # bins of 25 Hz, over which power is kept


def voiced(level: jax.Array, pitch: Pitch) -> jax.Array:
    """Gives spectra the partials of a pitch.

    Args:
      level: (B, T, 640) float32, see `gac_jax.signal.log_spectrum`.
      pitch: of 2 T spectra; those of a strength up to `UNSURE` stay as they are.

    Returns:
      (B, T, 640) float32.
    """
    rows = level.reshape(level.shape[0], -1, BANDS)
    bins = rows[:, :, :LINEAR_BANDS]
    partials = comb(pitch.octaves)
    sure = jnp.maximum(pitch.strength - UNSURE, 0.0)[:, :, None] / (1.0 - UNSURE)
    old = ripple(bins)
    share = jnp.sum(old * partials, axis=-1, keepdims=True)
    share = share / jnp.sum(jnp.square(partials), axis=-1, keepdims=True)
    depth = (DEPTH * np.exp(-hertz() / FADE)).astype(np.float32)[None, None]
    change = depth * partials + KEPT * (old - share * partials) - old
    new = bins + sure * change
    new = new + 0.5 * (_log_power(bins) - _log_power(new))
    return jnp.concatenate([new, rows[:, :, LINEAR_BANDS:]], axis=-1).reshape(level.shape)


def _log_power(bins: jax.Array) -> jax.Array:
    """Natural log of the power around each bin, of log amplitudes (B, S, 160)."""
    power = jnp.exp(2.0 * bins)
    return jnp.log(jnp.einsum("bsf,fg->bsg", power, _around(), precision="highest"))


@lru_cache(maxsize=1)
def _around() -> np.ndarray:
    """(160, 160) float32: Hann windows of `REGION` bins, mirrored at the ends, of sum 1."""
    window = np.hanning(REGION + 1)
    reach = len(window) // 2
    eye = np.pad(np.eye(LINEAR_BANDS), ((0, 0), (reach, reach)), mode="symmetric")
    rows = [np.convolve(row, window / window.sum(), mode="valid") for row in eye]
    return np.asarray(rows, np.float32)
