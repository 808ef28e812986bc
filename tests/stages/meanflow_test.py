import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gac_jax import flow
from gac_jax.models.flow_decoder import FlowDecoder
from gac_jax.stages import meanflow as stage
from gac_jax.stages.meanflow import mean_velocity, trainable
from gac_jax.training.state import init_state, make_train_step
from tests.tiny import DECODER, RATES, batch, drawn, frozen_parts, jit, meanflow

KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def frozen() -> Any:
    return frozen_parts()


def as_it_starts(frozen: Any) -> Any:
    """The student's parameters before the first step: the teacher's, and an interval unheard."""
    params = drawn(meanflow().init)
    silent = jax.tree.map(jnp.zeros_like, params["decoder"]["interval_out"])
    own = {"interval_in": params["decoder"]["interval_in"], "interval_out": silent}
    return {"decoder": {**trainable(frozen["decoder"]), **own}}


def test_the_mean_velocity_is_that_of_the_path() -> None:
    """dx/dt = x cos t, from t to r in rows of their own: x(r) = x(t) exp(sin r - sin t)."""
    t, until = jnp.asarray([0.0, 0.3, 0.6]), jnp.asarray([1.0, 0.5, 0.6])
    x = jnp.ones((3, 4, 5))

    def field(x: jax.Array, t: jax.Array, until: jax.Array) -> jax.Array:
        return x * jnp.cos(t)[:, None, None]

    found = mean_velocity(field, x, t, until, 500)
    expected = [np.expm1(np.sin(1.0)), np.expm1(np.sin(0.5) - np.sin(0.3)) / 0.2, np.cos(0.6)]
    np.testing.assert_allclose(found[:, 0, 0], expected, rtol=1e-3)
    assert found.shape == x.shape and (np.ptp(np.asarray(found), axis=(1, 2)) == 0).all()


def test_intervals_are_steps_of_the_solver() -> None:
    t, until = map(np.asarray, meanflow(instants=0.0)._intervals(KEY, 4000))
    steps = {
        (start, end)
        for n in (1, 2, 4, 8, 16)
        for start, end in zip(*(np.asarray(flow.time_grid(n))[i:][:n] for i in (0, 1)), strict=True)
    }
    assert set(zip(t.tolist(), until.tolist(), strict=True)) == {
        (float(start), float(end)) for start, end in steps
    }
    assert np.mean((t == 0) & (until == 1)) == pytest.approx(0.2, abs=0.03)


def test_instants_have_their_share() -> None:
    t, until = map(np.asarray, meanflow(instants=0.25)._intervals(KEY, 4000))
    assert np.mean(t == until) == pytest.approx(0.25, abs=0.03)
    assert (t <= until).all() and t.min() >= 0 and t.max() < 1


def test_the_condition_is_left_as_it_is(frozen: Any) -> None:
    params = drawn(meanflow().init)
    assert params.keys() == {"decoder"}
    assert params["decoder"].keys() == {*frozen["decoder"], "interval_in", "interval_out"} - {
        "condition_net"
    }


@pytest.fixture(scope="module")
def at_instants(frozen: Any) -> Any:
    """Loss and gradients for a batch where r = t."""
    task = meanflow(instants=1.0)

    def loss(params: Any, batch: Any) -> Any:
        return task.loss(params, frozen, {}, batch, KEY)[0]

    return jit(jax.value_and_grad(loss))


def test_at_an_instant_the_old_decoder_is_right(frozen: Any, at_instants: Any) -> None:
    """The stage starts from the decoder of stage 2, which knows the velocity at t."""
    assert float(at_instants(as_it_starts(frozen), batch())[0]) < 1e-8


def test_an_empty_batch_is_finite(frozen: Any, at_instants: Any) -> None:
    empty = {k: jnp.zeros_like(v) for k, v in batch().items()}
    value, gradients = at_instants(as_it_starts(frozen), empty)
    assert float(value) == 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_the_loss_is_the_squared_error_of_the_mean_velocity(frozen: Any) -> None:
    """Recomputed the long way, with the stage's own draws and the guidance of the sampler."""
    weights = (1.0, 1.5, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0)
    task, clips = meanflow(guidance=weights, path_steps=3, instants=0.0), batch()
    params = drawn(task.init)
    loss = jit(task.loss)(params, frozen, {}, clips, KEY)[0]
    keys = jax.random.split(KEY, 6)
    frames = -(-clips["num_samples"] // 2560)
    rows = len(frames)
    rate = stage.sample_rate_index(keys[0], RATES, rows)
    teacher = FlowDecoder(DECODER)
    student = FlowDecoder(dataclasses.replace(DECODER, interval=True))

    @jit
    def parts() -> tuple[jax.Array, ...]:
        embedding = task.generation.embed(frozen, clips, frames, rate)
        lost, variables = jnp.zeros(embedding.shape[:2], bool), {"params": frozen["decoder"]}
        told, untold = (
            teacher.apply(variables, embedding, rate, keep, lost, frames, method="condition")
            for keep in (rate >= 0, rate < 0)
        )
        x1 = told.standardise(stage.log_spectrum(clips["wave"]) + 3.0)
        temperature = jax.random.uniform(keys[2], (rows, 1, 1), minval=0.5)
        t, until = task._intervals(keys[4], rows)
        noise = temperature * jax.random.normal(keys[3], x1.shape)
        x_t = x = flow.interpolate(noise, x1, t)
        for i in range(3):
            now = t + i * (until - t) / 3
            v, without = (
                flow.velocity(teacher.apply(variables, x, now, given, frames), x, now)
                for given in (told, untold)
            )
            acts = (now >= 0.1)[:, None, None]
            weight = jnp.asarray(weights)[rate][:, None, None]
            v = jnp.where(acts, without + weight * (v - without), v)
            x = x + ((until - t) / 3)[:, None, None] * v
        u = (x - x_t) / (until - t)[:, None, None]
        own = {**params["decoder"], "condition_net": frozen["decoder"]["condition_net"]}
        x1_hat = student.apply({"params": own}, x_t, t, told, frames, until)
        return u, flow.velocity(x1_hat, x_t, t, flow.LOSS_FLOOR)

    u, found = map(np.asarray, parts())
    valid = np.arange(u.shape[1]) < 4 * np.asarray(frames)[:, None]
    expected = np.square(found - u).mean(axis=-1)[valid].mean()
    assert float(loss) == pytest.approx(expected, rel=1e-3)


@pytest.mark.usefixtures("standard_promotion")
def test_training_brings_the_error_down(frozen: Any) -> None:
    task = meanflow(instants=0.0, path_steps=1)
    optimizer = optax.adam(1e-2)
    state = init_state(task, optimizer, 0, drawn(task.init))
    step = jit(make_train_step(task, optimizer, 0, 0.9))
    losses = []
    for _ in range(30):
        state, metrics = step(state.replace(step=jnp.int32(0)), frozen, batch())  # the same draws
        losses.append(float(metrics["relative"]))
    assert losses[-1] < 0.5 * losses[0]
