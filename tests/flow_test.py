import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax import flow


def normals(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def test_interpolate_leads_from_noise_to_data(rng: np.random.Generator) -> None:
    x0, x1 = normals(rng, 3, 4, 5), normals(rng, 3, 4, 5)
    x_t = flow.interpolate(x0, x1, jnp.asarray([0.0, 0.25, 1.0]))
    np.testing.assert_array_equal(x_t[0], x0[0])
    np.testing.assert_allclose(x_t[1], 0.25 * x1[1] + 0.75 * x0[1], rtol=1e-5)
    np.testing.assert_array_equal(x_t[2], x1[2])


def test_velocity_of_the_right_answer_is_the_straight_line(rng: np.random.Generator) -> None:
    x0, x1, t = normals(rng, 3, 4, 5), normals(rng, 3, 4, 5), jnp.asarray([0.0, 0.4, 0.9])
    found = flow.velocity(x1, flow.interpolate(x0, x1, t), t)
    np.testing.assert_allclose(found, x1 - x0, atol=1e-5)


def test_velocity_stays_finite_at_the_audio_end(rng: np.random.Generator) -> None:
    x1_hat, x_t = normals(rng, 1, 4, 5), normals(rng, 1, 4, 5)
    found = flow.velocity(x1_hat, x_t, jnp.ones((1,)))
    np.testing.assert_allclose(found, (x1_hat - x_t) / flow.MIN_REMAINING, rtol=1e-5)


def test_loss_is_that_of_equation_10(rng: np.random.Generator) -> None:
    x0, x1, x1_hat = (normals(rng, 4, 6, 5) for _ in range(3))
    t = jnp.asarray([0.0, 0.3, 0.7, 0.94])  # from 1 - LOSS_FLOOR on, the weight is bounded
    v_hat = flow.velocity(x1_hat, flow.interpolate(x0, x1, t), t)
    expected = np.square(v_hat - (x1 - x0))
    np.testing.assert_allclose(flow.loss_per_element(x1_hat, x1, t), expected, rtol=1e-3, atol=1e-5)


def test_the_weight_of_times_near_the_audio_end_is_bounded(rng: np.random.Generator) -> None:
    x1, x1_hat = normals(rng, 2, 6, 5), normals(rng, 2, 6, 5)
    found = flow.loss_per_element(x1_hat, x1, jnp.asarray([0.96, 1.0]))
    np.testing.assert_allclose(found, 400.0 * np.square(x1_hat - x1), rtol=1e-4)


def test_time_is_logit_normal() -> None:
    t = np.asarray(flow.sample_time(jax.random.key(0), (100_000,), -0.4, 1.5), np.float64)
    assert t.min() > 0.0 and t.max() < 1.0
    logit = np.log(t / (1.0 - t))
    np.testing.assert_allclose([logit.mean(), logit.std()], [-0.4, 1.5], atol=0.02)


def test_noise_of_a_chunk_is_a_slice_of_the_whole() -> None:
    noise = jax.jit(flow.frame_noise, static_argnums=(2, 3))
    whole = noise(jnp.uint32(7), jnp.zeros((1,), jnp.int32), 12, 5)
    chunks = noise(jnp.uint32(7), jnp.asarray([0, 3, 8], jnp.int32), 4, 5)
    for row, start in enumerate([0, 3, 8]):
        np.testing.assert_array_equal(chunks[row], whole[0, start : start + 4])
    assert not np.array_equal(whole, noise(jnp.uint32(8), jnp.zeros((1,), jnp.int32), 12, 5))


def test_noise_is_standard_normal_and_white() -> None:
    noise = np.asarray(flow.frame_noise(jnp.uint32(0), jnp.asarray([0, 10**6]), 100, 640))
    assert noise.dtype == np.float32
    np.testing.assert_allclose([noise.mean(), noise.var()], [0.0, 1.0], atol=0.02)
    np.testing.assert_allclose(np.mean(noise**4), 3.0, atol=0.1)
    successors = np.mean(noise[:, 1:] * noise[:, :-1])
    neighbours = np.mean(noise[..., 1:] * noise[..., :-1])
    assert max(abs(successors), abs(neighbours), abs(np.mean(noise[0] * noise[1]))) < 0.02


@pytest.mark.parametrize("steps", [1, 2, 7, 16, 64])
@pytest.mark.parametrize("warp", [-1.0, 0.0, 2 / (math.pi - 2)])
def test_times_rise_from_0_to_1(steps: int, warp: float) -> None:
    grid = np.asarray(flow.time_grid(steps, warp))
    assert grid.shape == (steps + 1,) and grid.dtype == np.float32
    np.testing.assert_allclose([grid[0], grid[-1]], [0.0, 1.0], atol=1e-6)
    assert (np.diff(grid) > 0).all()


def test_a_negative_warp_takes_smaller_steps_near_the_noise() -> None:
    spans = np.diff(flow.time_grid(16))
    assert (np.diff(spans) > 0).all() and 0.0 < spans[0] < 0.01
    np.testing.assert_allclose(np.diff(flow.time_grid(16, warp=0.0)), 1 / 16, rtol=1e-4)


def solver_error(method: str, steps: int, warp: float) -> float:
    """Error at t = 1 of dx/dt = x cos(w t), whose solution is x(0) exp(sin(w t) / w)."""
    w = jnp.asarray([1.0, 2.0, 4.0, 6.0])

    def field(x: jax.Array, t: jax.Array, until: jax.Array) -> jax.Array:
        return x * jnp.cos(w * t)

    found = flow.solve(field, jnp.ones_like(w), flow.time_grid(steps, warp), method)
    return float(jnp.linalg.norm(found - jnp.exp(jnp.sin(w) / w)))


@pytest.mark.parametrize("warp", [0.0, -1.0])
@pytest.mark.parametrize(("method", "order"), [("euler", 1.0), ("heun", 2.0)])
def test_order_of_the_solver(method: str, order: float, warp: float) -> None:
    # Errors down to 1e-4: well above float32 rounding, small enough for the leading term to rule.
    steps = np.asarray([8, 16, 32])
    errors = [solver_error(method, int(n), warp) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.2


def test_euler_is_exact_on_straight_paths(rng: np.random.Generator) -> None:
    x0, x1 = normals(rng, 2, 3), normals(rng, 2, 3)
    found = flow.solve(lambda x, t, until: x1 - x0, x0, flow.time_grid(3), "euler")
    np.testing.assert_allclose(found, x1, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_steps_of_the_mean_velocity_are_exact_however_long(steps: int) -> None:
    """dx/dt = a x, whose mean velocity from t to r is x (exp(a (r - t)) - 1) / (r - t)."""
    a = jnp.asarray([-3.0, 0.5, 2.0])

    def field(x: jax.Array, t: jax.Array, until: jax.Array) -> jax.Array:
        return x * jnp.expm1(a * (until - t)) / (until - t)

    found = flow.solve(field, jnp.ones_like(a), flow.time_grid(steps), "meanflow")
    np.testing.assert_allclose(found, jnp.exp(a), rtol=1e-5)


@pytest.mark.parametrize("method", flow.SOLVERS)
@pytest.mark.parametrize("steps", [1, 4, 16, 100])
def test_solving_with_perfect_predictions_ends_at_the_data(
    rng: np.random.Generator, steps: int, method: str
) -> None:
    x0, x1 = normals(rng, 2, 4, 3), normals(rng, 2, 4, 3)

    def field(x: jax.Array, t: jax.Array, until: jax.Array) -> jax.Array:
        return flow.velocity(x1, x, jnp.broadcast_to(t, (2,)))

    found = flow.solve(field, x0, flow.time_grid(steps), method)
    np.testing.assert_allclose(found, x1, atol=1e-4)


def test_an_unknown_solver_is_refused() -> None:
    with pytest.raises(ValueError, match="'rk4'"):
        flow.solve(lambda x, t, until: x, jnp.zeros((1,)), flow.time_grid(2), "rk4")


def guided_velocity(weight: float, t: float) -> float:
    """The guided field at t where v is 3 given the codes and 1 without them."""

    def conditional(x: jax.Array, t: jax.Array, until: jax.Array) -> jax.Array:
        return jnp.full_like(x, 3.0)

    def doubled(x: jax.Array, t: jax.Array, until: jax.Array) -> jax.Array:
        return jnp.asarray([3.0, 1.0])

    field = flow.guided(conditional, doubled, jnp.float32(weight))
    return float(field(jnp.zeros((1,)), jnp.float32(t), jnp.float32(t))[0])


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_guidance_of_weight_1_is_the_conditional_field(t: float) -> None:
    assert guided_velocity(1.0, t) == pytest.approx(3.0)


@pytest.mark.parametrize(("weight", "expected"), [(0.0, 1.0), (1.5, 4.0), (3.0, 7.0)])
def test_guidance_moves_away_from_the_unconditional_field(weight: float, expected: float) -> None:
    assert guided_velocity(weight, 0.5) == pytest.approx(expected)


def test_guidance_acts_on_its_interval_only() -> None:
    first, last = flow.GUIDANCE_INTERVAL
    times = (first - 0.01, first + 0.01, last - 0.01, last + 0.01)
    found = [guided_velocity(3.0, t) for t in times]
    np.testing.assert_allclose(found, [3.0, 7.0, 7.0, 3.0])
