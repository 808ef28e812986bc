"""The short-time Fourier transform of an interval, and its least-squares inverse.

Hann windows of 1,280 samples, 320 apart. Frame t is centred on samples [320 t, 320 (t + 1)), so
frames tile an interval as blocks do, and zeros are assumed beyond its ends.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

WINDOW, HOP = 1_280, 320
_OVERLAP = WINDOW // HOP
_MARGIN = (WINDOW - HOP) // 2  # samples of the outer windows beyond the interval
_LEAST_WEIGHT = 1e-3  # of a sample, so that none is divided by nothing


def stft(wave: jax.Array) -> jax.Array:
    """Transforms waveforms.

    Args:
      wave: (B, 320 T) float32.

    Returns:
      (B, T, 641) complex64, of mean square 1 for white noise of unit RMS.
    """
    padded = jnp.pad(wave, ((0, 0), (_MARGIN, _MARGIN)))
    blocks = padded.reshape(wave.shape[0], -1, HOP)
    frames = wave.shape[1] // HOP
    pieces = [blocks[:, i : i + frames] for i in range(_OVERLAP)]
    return jnp.fft.rfft(jnp.concatenate(pieces, axis=-1) * _window())


def istft(spectrum: jax.Array) -> jax.Array:
    """The waveform whose `stft` is nearest to `spectrum` (Griffin and Lim, 1984).

    Args:
      spectrum: (B, T, 641) complex64.

    Returns:
      (B, 320 T) float32.
    """
    pieces = jnp.fft.irfft(spectrum, n=WINDOW) * _window()
    weights = jnp.broadcast_to(jnp.square(_window()), (1, *pieces.shape[1:]))
    wave = _overlap_add(pieces) / jnp.maximum(_overlap_add(weights), _LEAST_WEIGHT)
    return wave[:, _MARGIN:-_MARGIN]


def _overlap_add(pieces: jax.Array) -> jax.Array:
    """(B, T, 1280) to (B, 320 T + 960)."""
    blocks = pieces.reshape(*pieces.shape[:2], _OVERLAP, HOP)
    last = _OVERLAP - 1
    shifted = [jnp.pad(blocks[:, :, i], ((0, 0), (i, last - i), (0, 0))) for i in range(_OVERLAP)]
    return sum(shifted[1:], shifted[0]).reshape(pieces.shape[0], -1)


@lru_cache(maxsize=1)
def _window() -> np.ndarray:
    """Periodic Hann window of energy 1, (1, 1, 1280)."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    window /= np.sqrt(np.sum(np.square(window)))
    return window.astype(np.float32)[None, None]
