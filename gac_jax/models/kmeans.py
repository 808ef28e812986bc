"""Codebooks that follow what they encode: online k-means.

Every code is the running mean of the points nearest to it (van den Oord et al., 2017, appendix A),
and a code that hardly any point is nearest to is drawn anew from the points at hand (Dhariwal et
al., 2020). Codes trained by gradients instead fell behind the features that they chase, and most of
them dropped out of use.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

START_COUNT = 0.05  # weight of the codes to begin with, in points; soon outweighed
DEAD = 0.1  # share of the mean use below which a code is drawn anew


class Means(NamedTuple):
    """Running statistics of R codebooks of K codes.

    Attributes:
      counts: (R, K) float32, points per batch nearest to each code.
      sums: (R, K, d) float32, their sum.
    """

    counts: jax.Array
    sums: jax.Array


def start_means(codebooks: jax.Array) -> Means:
    """Statistics under which codebooks (R, K, d) are as they are."""
    counts = jnp.full(codebooks.shape[:2], START_COUNT, jnp.float32)
    return Means(counts, START_COUNT * codebooks)


def centroids(means: Means) -> jax.Array:
    """The codebooks (R, K, d) that the statistics amount to."""
    return means.sums / means.counts[..., None]


def update_means(
    means: Means,
    points: jax.Array,
    codes: jax.Array,
    valid: jax.Array,
    key: jax.Array,
    decay: float,
) -> Means:
    """Takes in one batch; one without valid points changes nothing.

    Args:
      means: statistics so far.
      points: (R, B, N, d) float32, what each codebook described.
      codes: (R, B, N) int32, the codes it chose.
      valid: (B, N) bool; other points do not count.
      key: draws the points that replace dead codes.
      decay: weight of the past.
    """
    num_codes, weight = means.counts.shape[1], valid.ravel().astype(jnp.float32)
    chosen = jnp.log(jnp.maximum(weight, 1e-9))
    drawn = jax.random.categorical(key, chosen, shape=(num_codes,))

    def update(counts: jax.Array, sums: jax.Array, x: jax.Array, codes: jax.Array) -> Means:
        hits = jax.nn.one_hot(codes, num_codes) * weight[:, None]
        counts = decay * counts + (1.0 - decay) * jnp.sum(hits, axis=0)
        sums = decay * sums + (1.0 - decay) * (hits.T @ x)
        usual = jnp.mean(counts)
        dead = counts < DEAD * usual
        return Means(
            counts=jnp.where(dead, usual, counts),
            sums=jnp.where(dead[:, None], usual * x[drawn], sums),
        )

    flat_points = points.reshape(*points.shape[:1], -1, points.shape[-1])
    new = jax.vmap(update)(*means, flat_points, codes.reshape(codes.shape[0], -1))
    some = jnp.any(valid)
    return jax.tree.map(lambda a, b: jnp.where(some, a, b), new, means)
