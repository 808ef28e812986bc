"""Cepstra of patches of a log-mel spectrogram: few numbers that carry most of its variance.

The two-dimensional DCT comes close to the Karhunen-Loeve transform of log spectra in frequency
(Davis and Mermelstein's cepstrum, 1980) and in time: on 60,000 patches of 80 ms, its first 64
coefficients left a log-mel L1 of 0.18, the first 64 principal components 0.15, of 0.86 deviation.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

# One step of the modulation in time costs as much as this many steps in quefrency.
_TIME_COST, _QUEFRENCY_COST = 2.5, 0.1

# Of single bins of 25 Hz up to 4 kHz: partials of voices from 90 to 330 Hz ripple at these orders.
LOWEST_RIPPLE = 24


def cepstrum(log_mel: jax.Array, frames: int, features: int) -> jax.Array:
    """The coefficients of lowest order of each patch's orthonormal DCT-II in both directions.

    Args:
      log_mel: (B, N * frames, M) float32.
      frames: spectra in one patch.
      features: F coefficients of the frames * M that there are.

    Returns:
      (B, N, F) float32. Their mean square is that of the log-mel, where they describe it in full.
    """
    batch, length, mels = log_mel.shape
    patches = log_mel.reshape(batch, length // frames, frames * mels)
    basis = _basis(frames, mels, features)
    return jnp.einsum("bnp,pf->bnf", patches, basis, precision=jax.lax.Precision.HIGHEST)


def ripples(level: jax.Array, frames: int, features: int) -> jax.Array:
    """How the partials of a voice ripple through each patch of a fine log spectrum.

    Coefficients of the DCT-II over bins, from that of a voice of 330 Hz on, of the mean over time.

    Args:
      level: (B, N * frames, M) float32, natural log of power in bins of 25 Hz, M at least
        `LOWEST_RIPPLE` + F.
      frames: spectra in one patch.
      features: F.

    Returns:
      (B, N, F) float32, scaled as those of `cepstrum` of as many features are.
    """
    batch, length, bins = level.shape
    mean = jnp.mean(level.reshape(batch, length // frames, frames, bins), axis=2)
    rows = dct2(bins)[LOWEST_RIPPLE : LOWEST_RIPPLE + features] * np.sqrt(features / bins)
    basis = rows.T.astype(np.float32)
    return jnp.einsum("bnm,mf->bnf", mean, basis, precision=jax.lax.Precision.HIGHEST)


@lru_cache(maxsize=4)
def _basis(frames: int, mels: int, features: int) -> np.ndarray:
    """(frames * mels, features) float32; its columns are orthogonal."""
    time, quefrency = np.meshgrid(np.arange(frames), np.arange(mels), indexing="ij")
    cost = (1 + _TIME_COST * time) * (1 + _QUEFRENCY_COST * quefrency)
    order = np.argsort(cost.ravel(), kind="stable")[:features]
    basis = np.kron(dct2(frames), dct2(mels))[order].T * np.sqrt(features / (frames * mels))
    return basis.astype(np.float32)


def dct2(size: int) -> np.ndarray:
    """The orthonormal DCT-II as rows."""
    angle = np.pi / size * np.outer(np.arange(size), np.arange(size) + 0.5)
    rows = np.sqrt(2 / size) * np.cos(angle)
    rows[0] /= np.sqrt(2)
    return rows
