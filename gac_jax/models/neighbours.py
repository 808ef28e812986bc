"""A filter over nearby numbers of a spectrum, which a narrow network cannot carry."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

REACH = (3, 2)  # neighbours on either side that a number is estimated from: in time, in frequency
TIMES, BANDS = (2 * reach + 1 for reach in REACH)
TIME_POWERS = 4  # of t, in whose terms the weights are written
CHUNK = 16  # spectra that are multiplied at once for the gradient of the weights


class Neighbours(nn.Module):
    """The filter, whose weights are polynomials in t.

    Windows that overlap make neighbours in time and frequency alike, the same way everywhere, and
    the Wiener filter knows nothing of it; a network narrower than a spectrum cannot carry it. The
    weights may differ between a few groups of bands, and are zero at first.

    Attributes:
      groups: G, groups of neighbouring bands, each with a filter of its own.
      halves: spectra in one row of F numbers.
    """

    groups: int
    halves: int

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """Maps x (B, T, F) and t (B,) to (B, T, F)."""
        shape = (TIME_POWERS, TIMES, BANDS, self.groups)
        weights = self.param("weights", nn.initializers.zeros, shape)
        powers = t[:, None] ** jnp.arange(TIME_POWERS, dtype=t.dtype)[None]
        kernel = jnp.einsum("bp,pijg->bijg", powers, weights)
        grid = x.reshape(x.shape[0], self.halves * x.shape[1], x.shape[2] // self.halves)
        return filter_nearby(grid, kernel).reshape(x.shape)


@jax.custom_vjp
def filter_nearby(grid: jax.Array, kernel: jax.Array) -> jax.Array:
    """Sums what is near each number of a grid, up to `REACH`, with weights.

    Gradients are written out. Those that differentiation would find take XLA's CPU backend seven
    times as long: it stores a shifted copy of the grid for each weight.

    Args:
      grid: (B, S, F) float32, zero beyond its ends.
      kernel: (B, 7, 5, G) float32, a filter for each of G groups of neighbouring bands.

    Returns:
      (B, S, F) float32.
    """
    weights = jnp.repeat(kernel, grid.shape[2] // kernel.shape[3], axis=-1)
    return _weighted(grid, lambda i, j: weights[:, i, j])


def _filter_forward(grid: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return filter_nearby(grid, kernel), (grid, kernel)


def _filter_backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    grid, kernel = saved
    return _grid_gradient(gradient, kernel), _kernel_gradient(grid, gradient, kernel.shape[3])


filter_nearby.defvjp(_filter_forward, _filter_backward)


def _grid_gradient(gradient: jax.Array, kernel: jax.Array) -> jax.Array:
    """The filter turned round, whose weights are those of the bands that they come from."""
    bands = gradient.shape[2]
    weights = jnp.repeat(kernel[:, ::-1, ::-1], bands // kernel.shape[3], axis=-1)
    weights = jnp.pad(weights, ((0, 0), (0, 0), (0, 0), (REACH[1], REACH[1])))
    return _weighted(gradient, lambda i, j: weights[:, i, j, j : j + bands])


def _weighted(grid: jax.Array, weight: Callable[[int, int], jax.Array]) -> jax.Array:
    """Sum over (i, j) of the grid as seen from there, times weight(i, j) of (B, F)."""
    padded, total = _padded(grid), jnp.zeros_like(grid)
    for i, j in np.ndindex(TIMES, BANDS):
        near = padded[:, i : i + grid.shape[1], j : j + grid.shape[2]]
        total += weight(i, j)[:, None] * near
    return total


def _kernel_gradient(grid: jax.Array, gradient: jax.Array, groups: int) -> jax.Array:
    """Diagonals of products of `CHUNK` spectra with all near them; the rest is not wanted."""
    batch, spectra, bands = grid.shape
    fill = -spectra % CHUNK
    grid, gradient = (jnp.pad(x, ((0, 0), (0, fill), (0, 0))) for x in (grid, gradient))
    padded, starts = _padded(grid), range(0, spectra, CHUNK)
    rows = jnp.stack([padded[:, at : at + CHUNK + TIMES - 1] for at in starts], axis=1)
    split = (batch, len(starts), -1, groups, bands // groups)

    def at_band(j: int) -> jax.Array:
        near = rows[..., j : j + bands].reshape(split)
        products = jnp.einsum(
            "bcugf,bcsgf->bgus", near, gradient.reshape(split), precision="highest"
        )
        sums = [jnp.trace(products[:, :, i : i + CHUNK], axis1=2, axis2=3) for i in range(TIMES)]
        return jnp.stack(sums, axis=1)

    return jnp.stack([at_band(j) for j in range(BANDS)], axis=2)


def _padded(grid: jax.Array) -> jax.Array:
    return jnp.pad(grid, ((0, 0), *((reach, reach) for reach in REACH)))
