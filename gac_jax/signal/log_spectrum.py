"""The log-magnitude spectrum of audio: what the flow generates.

Two short-time spectra make one frame of 20 ms. Each is a Hann-windowed Fourier transform of 40 ms,
its magnitudes averaged into 320 bands: single bins of 25 Hz up to 4 kHz, where the partials of a
voice are apart, and wider bands in proportion to their frequency up to 16 kHz. The phase is not
kept; `gac_jax.signal.griffin_lim` finds one that fits.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from gac_jax.rates import SAMPLE_RATE, SPECTRUM_HOP
from gac_jax.signal.stft import WINDOW, stft

BANDS = 320
LINEAR_BANDS = 160  # single bins
BINS = WINDOW // 2 + 1
LOUDEST = 5.0  # natural log; a steady tone of unit RMS has 3
FLOOR = 1e-3  # amplitude density, of white noise of unit RMS: 60 dB below is taken for silence


def log_spectrum(wave: jax.Array) -> jax.Array:
    """Natural log of the amplitude density in each band.

    Args:
      wave: (B, T * 640) float32 at 32 kHz; zeros are assumed beyond its ends.

    Returns:
      (B, T, 640) float32, the bands of the earlier half of each frame before those of the later:
      about 0 for white noise of unit RMS, and never below log(0.001).
    """
    power = jnp.square(jnp.abs(stft(wave)))
    bands = jnp.einsum("btf,fm->btm", power, _averages(), precision=jax.lax.Precision.HIGHEST)
    level = 0.5 * jnp.log(jnp.maximum(bands, FLOOR**2))
    return level.reshape(wave.shape[0], wave.shape[1] // SPECTRUM_HOP, -1)


def partials(level: jax.Array) -> jax.Array:
    """The single bins up to 4 kHz of level (B, T, 640), a row for each spectrum: (B, 2 T, 160)."""
    return level.reshape(level.shape[0], -1, BANDS)[:, :, :LINEAR_BANDS]


def powers(level: jax.Array) -> jax.Array:
    """Undoes `log_spectrum` but for the phase, and for what its bands had averaged.

    Args:
      level: (B, T, 640); what no audio of about unit RMS reaches is taken for `LOUDEST`.

    Returns:
      (B, 2 T, 641) float32, squared magnitudes as of `stft`, 0 where the level is the floor.
    """
    level = level.reshape(level.shape[0], -1, BANDS)
    smooth = jnp.einsum("btm,mf->btf", level, _curve(), precision=jax.lax.Precision.HIGHEST)
    power = jnp.exp(2.0 * jnp.minimum(smooth, LOUDEST))
    return jnp.maximum(power - FLOOR**2, 0.0)


def magnitudes(level: jax.Array) -> jax.Array:
    """The square root of `powers`."""
    return jnp.sqrt(powers(level))


@lru_cache(maxsize=1)
def _edges() -> np.ndarray:
    """Centres of the bands in hertz, and one more on either side, (322,)."""
    linear = np.arange(LINEAR_BANDS + 1) * SAMPLE_RATE / WINDOW
    ratio = (SAMPLE_RATE / 2 / linear[-1]) ** (1 / (BANDS - LINEAR_BANDS + 1))
    wide = linear[-1] * ratio ** np.arange(1, BANDS - LINEAR_BANDS + 2)
    return np.concatenate([linear, wide])


@lru_cache(maxsize=1)
def _averages() -> np.ndarray:
    """(641, 320) triangular weights, each column with sum 1."""
    hertz, edges = np.arange(BINS) * SAMPLE_RATE / WINDOW, _edges()
    least = SAMPLE_RATE / WINDOW  # of a triangle's sides: no band falls between two bins
    low = np.minimum(edges[:-2], edges[1:-1] - least)
    high = np.maximum(edges[2:], edges[1:-1] + least)
    rising = (hertz[:, None] - low) / (edges[1:-1] - low)
    falling = (high - hertz[:, None]) / (high - edges[1:-1])
    weights = np.maximum(np.minimum(rising, falling), 0.0)
    return (weights / np.sum(weights, axis=0)).astype(np.float32)


@lru_cache(maxsize=1)
def _curve() -> np.ndarray:
    """(320, 641): linear interpolation between the centres, constant beyond the outer two."""
    hertz, centres = np.arange(BINS) * SAMPLE_RATE / WINDOW, _edges()[1:-1]
    rows = [np.interp(hertz, centres, one) for one in np.eye(BANDS)]
    return np.asarray(rows, np.float32)
