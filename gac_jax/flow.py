"""Rectified flow (Liu et al., 2023) as pure functions; t = 0 is noise, t = 1 is audio.

Equation numbers are those of the GAC report (arXiv 2602.00648).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

# (x, t, until) -> mean velocity on the path from x at t to the time `until`, () each; at until = t
# it is the velocity at t, which is all that a network without `DecoderConfig.interval` knows.
VelocityFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
GUIDANCE_INTERVAL = (0.1, 1.0)  # t on which guidance acts; at the noise end it only overshoots
SOLVERS = ("euler", "heun", "meanflow")
MIN_REMAINING = 1e-3  # floor of 1 - t, so that v stays finite at the audio end
LOSS_FLOOR = 0.05  # the same in the loss, so that times near that end do not outweigh the rest


def interpolate(x0: jax.Array, x1: jax.Array, t: jax.Array) -> jax.Array:
    """X_t = t X_1 + (1 - t) X_0 (Eq. 10).

    Args:
      x0: (B, ...) Gaussian noise.
      x1: (B, ...) data.
      t: (B,) flow time.
    """
    t = _expand(t, x1)
    return t * x1 + (1.0 - t) * x0


def velocity(
    x1_hat: jax.Array, x_t: jax.Array, t: jax.Array, floor: float = MIN_REMAINING
) -> jax.Array:
    """Velocity that leads from X_t straight to the predicted X_1: (X_1 - X_t) / (1 - t).

    Args:
      x1_hat: (B, ...) predicted data.
      x_t: (B, ...) current point.
      t: (B,) flow time.
      floor: least value of 1 - t.
    """
    return (x1_hat - x_t) / jnp.maximum(1.0 - _expand(t, x_t), floor)


def loss_per_element(x1_hat: jax.Array, x1: jax.Array, t: jax.Array) -> jax.Array:
    """|v_theta - (X_1 - X_0)|^2 of Eq. 10, element by element.

    With X_t on the straight line, v_theta - (X_1 - X_0) = (X_1_hat - X_1) / (1 - t), so the
    noise does not appear.
    """
    return jnp.square(velocity(x1_hat, x1, t, LOSS_FLOOR))


def sample_time(key: jax.Array, shape: tuple[int, ...], mean: float, std: float) -> jax.Array:
    """Draws t from a logit-normal distribution (Esser et al., 2024)."""
    return jax.nn.sigmoid(mean + std * jax.random.normal(key, shape))


def frame_noise(seed: jax.Array, start: jax.Array, frames: int, bins: int) -> jax.Array:
    """X_0 keyed by absolute frame index: chunks, batches and streams draw the same noise.

    Args:
      seed: () uint32.
      start: (B,) int32, absolute index of each row's first frame.
      frames: T.
      bins: F.

    Returns:
      (B, T, F) float32, standard normal.
    """
    key = jax.random.key(seed)
    index = start[:, None] + jnp.arange(frames, dtype=start.dtype)[None]

    def draw(i: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, i), (bins,))

    return jax.vmap(jax.vmap(draw))(index)


def time_grid(steps: int, warp: float = -1.0) -> jax.Array:
    """Solver times from 0 to 1, warped by sway sampling (F5-TTS, Chen et al., 2024).

    Args:
      steps: number of intervals, at least 1.
      warp: 0 is uniform; negative values take smaller steps near the noise, where the
        decisions are made. Monotone for -1 <= warp <= 2 / (pi - 2).

    Returns:
      (steps + 1,) float32.
    """
    t = jnp.linspace(0.0, 1.0, steps + 1)
    return t + warp * (jnp.cos(jnp.pi / 2 * t) - 1.0 + t)


def guided(conditional: VelocityFn, doubled: VelocityFn, weight: jax.Array) -> VelocityFn:
    """Classifier-free guidance on `GUIDANCE_INTERVAL` (Kynkaanniemi et al., 2024).

    Args:
      conditional: v given the codes; used outside that interval, at half the cost.
      doubled: v of a batch twice as large, given the codes in its first half of rows and the null
        condition in its second.
      weight: guidance weight, (B, 1, 1) or (); 1 is no guidance.
    """

    def inside(x: jax.Array, t: jax.Array, until: jax.Array) -> jax.Array:
        with_codes, without = jnp.split(doubled(jnp.concatenate([x, x]), t, until), 2)
        return without + weight * (with_codes - without)

    def field(x: jax.Array, t: jax.Array, until: jax.Array) -> jax.Array:
        return jax.lax.cond(guidance_acts(t), inside, conditional, x, t, until)

    return field


def guidance_acts(t: jax.Array) -> jax.Array:
    """Whether t, of any shape, lies on `GUIDANCE_INTERVAL`."""
    return (t >= GUIDANCE_INTERVAL[0]) & (t <= GUIDANCE_INTERVAL[1])


def solve(velocity_fn: VelocityFn, x0: jax.Array, times: jax.Array, method: str) -> jax.Array:
    """Integrates dX/dt = v(X, t) along `times` (Eq. 11) in one `lax.scan`.

    Args:
      velocity_fn: see `VelocityFn`; x has x0's shape.
      x0: start point at times[0].
      times: (steps + 1,) increasing.
      method: 'euler' (first order, one evaluation a step), 'heun' (second order, two; its last
        step is Euler's, as in Karras et al., 2022) or 'meanflow' (one evaluation a step, of the
        mean velocity over it, with which steps of any length end on the path).

    Returns:
      The point at times[-1], shape of x0.

    Raises:
      ValueError: unknown method.
    """
    if method not in SOLVERS:
        raise ValueError(f"solver must be one of {SOLVERS}, not {method!r}")

    def step(x: jax.Array, span: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        start, end = span
        slope = velocity_fn(x, start, end if method == "meanflow" else start)
        if method == "heun":
            ahead = velocity_fn(x + (end - start) * slope, end, end)
            # Having arrived at the X_1 that it predicts, a network sees no velocity at t = 1.
            slope = jnp.where(end < times[-1], 0.5 * (slope + ahead), slope)
        return x + (end - start) * slope, None

    return jax.lax.scan(step, x0, (times[:-1], times[1:]))[0]


def _expand(t: jax.Array, like: jax.Array) -> jax.Array:
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim))
