"""Orthonormal MDCT of an interval: what the flow generates.

The MDCT with hop 640 and a sine window of 1,280 samples, realised as time-domain aliasing
cancellation: an orthogonal rotation of the 320 samples on each side of every boundary between
blocks, then an orthonormal DCT-IV of each block. The outer boundaries are not rotated, so 640 T
samples and (T, 640) coefficients are related by a square orthogonal matrix: no padding, exact
inverse, white noise stays white.

Reference: Princen and Bradley, "Analysis/synthesis filter bank design based on time domain
aliasing cancellation" (1986); Coifman and Meyer's local cosine bases (1991) for the rotations.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from gac_jax.rates import MDCT_HOP

_HALF = MDCT_HOP // 2


def mdct(wave: jax.Array, num_frames: jax.Array | None = None) -> jax.Array:
    """Transforms waveforms to MDCT coefficients.

    Args:
      wave: (B, T * 640) float32.
      num_frames: (B,) int32 valid MDCT frames of each row, or None if all T are. What lies beyond
        a row's valid frames does not reach its coefficients.

    Returns:
      (B, T, 640) float32, zero in frames that are not valid.
    """
    blocks = _keep_valid(wave.reshape(wave.shape[0], -1, MDCT_HOP), num_frames)
    return _dct4(_rotate_boundaries(blocks, num_frames, direction=1.0))


def imdct(coefficients: jax.Array, num_frames: jax.Array | None = None) -> jax.Array:
    """Inverts `mdct`.

    Args:
      coefficients: (B, T, 640) float32.
      num_frames: (B,) int32 valid MDCT frames of each row, or None if all T are.

    Returns:
      (B, T * 640) float32, zero in frames that are not valid.
    """
    blocks = _dct4(_keep_valid(coefficients, num_frames))
    wave = _rotate_boundaries(blocks, num_frames, direction=-1.0)
    return wave.reshape(wave.shape[0], -1)


def compand(coefficients: jax.Array, exponent: float = 0.4) -> jax.Array:
    """Returns sign(c) |c|^exponent, which evens out loud and soft; the gradient at 0 is 0."""
    magnitude = jnp.abs(coefficients)
    # Below 1, the power has an infinite slope at 0 and a NaN gradient follows unless the zero
    # is replaced before it is raised.
    positive = magnitude > 0
    power = jnp.where(positive, magnitude, 1.0) ** exponent
    return jnp.where(positive, jnp.sign(coefficients) * power, 0.0)


def expand(companded: jax.Array, exponent: float = 0.4) -> jax.Array:
    """Inverts `compand` of the same exponent."""
    return jnp.sign(companded) * jnp.abs(companded) ** (1 / exponent)


def _keep_valid(blocks: jax.Array, num_frames: jax.Array | None) -> jax.Array:
    if num_frames is None:
        return blocks
    valid = jnp.arange(blocks.shape[1])[None, :] < num_frames[:, None]
    return jnp.where(valid[:, :, None], blocks, 0.0)


def _rotate_boundaries(
    blocks: jax.Array, num_frames: jax.Array | None, direction: float
) -> jax.Array:
    """Rotates each pair of samples that mirror each other in a boundary inside the valid part.

    The DCT-IV basis is even about a block's start and odd about its end, hence the signs.
    """
    before = jnp.flip(blocks[:, :-1, _HALF:], axis=-1)  # counted away from the boundary
    after = blocks[:, 1:, :_HALF]
    cos, sin = (jnp.broadcast_to(table, after.shape) for table in _rotation())
    if num_frames is not None:
        inner = jnp.arange(1, blocks.shape[1])[None, :] < num_frames[:, None]
        cos = jnp.where(inner[:, :, None], cos, 1.0)
        sin = jnp.where(inner[:, :, None], sin, 0.0)
    sin = direction * sin
    rotated_after = cos * after + sin * before
    rotated_before = jnp.flip(cos * before - sin * after, axis=-1)
    starts = jnp.concatenate([blocks[:, :1, :_HALF], rotated_after], axis=1)
    ends = jnp.concatenate([rotated_before, blocks[:, -1:, _HALF:]], axis=1)
    return jnp.concatenate([starts, ends], axis=-1)


def _dct4(blocks: jax.Array) -> jax.Array:
    """Applies the orthonormal DCT-IV, its own inverse, to the last axis."""
    return jnp.einsum("btn,nf->btf", blocks, _dct4_matrix(), precision=jax.lax.Precision.HIGHEST)


@lru_cache(maxsize=1)
def _rotation() -> tuple[np.ndarray, np.ndarray]:
    """The sine window on its rising side of a boundary and on its falling side, (1, 1, 320)."""
    angle = np.pi * (_HALF + np.arange(_HALF) + 0.5) / (2 * MDCT_HOP)
    rising, falling = np.sin(angle), np.cos(angle)
    return rising.astype(np.float32)[None, None], falling.astype(np.float32)[None, None]


@lru_cache(maxsize=1)
def _dct4_matrix() -> np.ndarray:
    index = np.arange(MDCT_HOP) + 0.5
    basis = np.sqrt(2 / MDCT_HOP) * np.cos(np.pi / MDCT_HOP * np.outer(index, index))
    return basis.astype(np.float32)
