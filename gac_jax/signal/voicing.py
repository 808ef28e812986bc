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

DEPTH = 3.0  # of a clear voice's comb at 0 Hz
UNSURE = 0.5  # strength of a voice that gets no comb; single notes in music reach it
FADE = 3000.0  # hertz, over which combs fade: upper partials are blurred in real voices too
KEPT = 0.5  # of what the decoder says beside the comb
REGION = 16  # bins of 25 Hz, over which power is kept
BESIDE = 0.5  # weight of the spectra before and after; wider means are clearer and cost words


def voiced(level: jax.Array, pitch: Pitch, valid: jax.Array) -> jax.Array:
    """Gives spectra the partials of a pitch, and steadies them: voices change by little in 10 ms.

    Args:
      level: (B, T, 640) float32, see `gac_jax.signal.log_spectrum`.
      pitch: of 2 T spectra; those of a strength up to `UNSURE` stay as they are.
      valid: (B, 2 T) bool; the rest is padding, of which nothing is taken in.

    Returns:
      (B, T, 640) float32.
    """
    rows = level.reshape(level.shape[0], -1, BANDS)
    sure = jnp.maximum(pitch.strength - UNSURE, 0.0)[:, :, None] / (1.0 - UNSURE)
    bins = rows[:, :, :LINEAR_BANDS]
    # Power by itself: the mean of logarithms of noise has less.
    bins, power = (x + sure * (_steadied(x, valid) - x) for x in (bins, _log_power(bins)))
    partials, old = comb(pitch.octaves), ripple(bins)
    share = jnp.sum(old * partials, axis=-1, keepdims=True)
    share = share / jnp.sum(jnp.square(partials), axis=-1, keepdims=True)
    depth = (DEPTH * np.exp(-hertz() / FADE)).astype(np.float32)[None, None]
    change = depth * partials + KEPT * (old - share * partials) - old
    new = bins + sure * change
    for _ in range(2):  # powers of neighbours overlap, and a second look comes nearer
        new = new + 0.5 * (power - _log_power(new))
    return jnp.concatenate([new, rows[:, :, LINEAR_BANDS:]], axis=-1).reshape(level.shape)


def _steadied(bins: jax.Array, valid: jax.Array) -> jax.Array:
    """Means of valid spectra (B, S, 160) and those `BESIDE` them."""
    weight = valid[:, :, None].astype(jnp.float32)

    def around(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
        return x + BESIDE * (padded[:, :-2] + padded[:, 2:])

    return around(weight * bins) / jnp.maximum(around(weight), 1.0)


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
