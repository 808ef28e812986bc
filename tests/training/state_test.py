from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gac_jax.stages.task import Batch, Metrics, Params
from gac_jax.training.optimizer import OptimizerConfig, make_optimizer, path_name
from gac_jax.training.state import TrainState, init_state, make_train_step
from tests.tiny import batch, frozen_parts, generation, jit, understanding

pytestmark = pytest.mark.usefixtures("standard_promotion")


class Toy:
    """Least squares with a little noise; sqrt(scale) has an infinite slope at 0."""

    name = "toy"

    def init(self, key: jax.Array) -> Params:
        return {
            "layer": {"kernel": jax.random.normal(key, (3,)), "bias": jnp.ones((3,))},
            "told": jnp.zeros(()),
        }

    def init_memory(self, params: Params) -> Params:
        return {"seen": jnp.zeros(())}

    def loss(
        self, params: Params, frozen: Params, memory: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Params]]:
        layer, noise = params["layer"], 1e-3 * jax.random.normal(key, (3,))
        error = layer["kernel"] + layer["bias"] + frozen["offset"] - batch["target"] + noise
        loss = jnp.sum(error**2) + jnp.sqrt(batch["scale"] * jnp.sum(layer["kernel"] ** 2))
        memory = {"seen": memory["seen"] + batch["target"].sum()}
        return loss, ({"noise": noise[0]}, memory)

    def refresh(self, params: Params, memory: Params) -> Params:
        return {**params, "told": memory["seen"] + 0.0}


FROZEN = {"offset": jnp.ones((3,))}
GOOD = {"target": jnp.asarray([3.0, -1.0, 2.0]), "scale": jnp.float32(1.0)}
OPTIMIZER = optax.adam(0.1)
step = jax.jit(make_train_step(Toy(), OPTIMIZER, seed=4, ema_decay=0.9))


@pytest.fixture
def state() -> TrainState:
    return init_state(Toy(), OPTIMIZER, seed=4, start={})


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_starts_where_it_should(state: TrainState) -> None:
    assert (int(state.step), int(state.skipped)) == (0, 0)
    assert_same(state.params, Toy().init(jax.random.key(4)))
    assert_same(state.ema, state.params)
    assert_same(state.memory, Toy().init_memory(state.params))


def test_pretrained_parameters_replace_fresh_ones() -> None:
    start = {"layer": {"kernel": np.asarray([7.0, 8.0, 9.0], np.float32)}}
    state = init_state(Toy(), OPTIMIZER, seed=4, start=start)
    for tree in (state.params, state.ema):
        np.testing.assert_array_equal(tree["layer"]["kernel"], [7.0, 8.0, 9.0])
        np.testing.assert_array_equal(tree["layer"]["bias"], 1.0)


@pytest.mark.parametrize("start", [{"layer": {"kernel": np.ones(4)}}, {"lair": np.ones(3)}])
def test_pretrained_parameters_without_a_place_are_refused(start: Any) -> None:
    with pytest.raises(ValueError, match=r"pretrained la.* \(\d,\) has no place"):
        init_state(Toy(), OPTIMIZER, seed=4, start=start)


def test_a_step_descends_counts_and_remembers(state: TrainState) -> None:
    after, metrics = step(state, FROZEN, GOOD)
    for _ in range(100):
        after, last = step(after, FROZEN, GOOD)
    assert float(last["loss"]) < 0.2 * float(metrics["loss"])
    assert (int(after.step), int(after.skipped)) == (101, 0)
    assert float(after.memory["seen"]) == pytest.approx(101 * 4.0)
    assert float(metrics["gradient_norm"]) > 0.0


def test_the_same_state_takes_the_same_step(state: TrainState) -> None:
    assert_same(step(state, FROZEN, GOOD), step(state, FROZEN, GOOD))


def test_every_step_draws_its_own_randomness(state: TrainState) -> None:
    noise = [
        float(step(state.replace(step=jnp.int32(i)), FROZEN, GOOD)[1]["noise"]) for i in range(5)
    ]
    assert len(set(noise)) == 5
    other = jax.jit(make_train_step(Toy(), OPTIMIZER, seed=5, ema_decay=0.9))
    assert float(other(state, FROZEN, GOOD)[1]["noise"]) != noise[0]


def test_the_average_warms_up_to_its_decay(state: TrainState) -> None:
    ema = state.ema["layer"]["bias"]
    for i in range(120):
        state, _ = step(state, FROZEN, GOOD)
        decay = min(0.9, (1 + i) / (10 + i))
        ema = decay * ema + (1 - decay) * state.params["layer"]["bias"]
        if i in (0, 1, 5, 119):
            np.testing.assert_allclose(state.ema["layer"]["bias"], ema, atol=1e-4)


def test_what_follows_the_memory_is_not_averaged_again(state: TrainState) -> None:
    for _ in range(3):
        state, _ = step(state, FROZEN, GOOD)
        assert float(state.params["told"]) == float(state.memory["seen"])
        assert float(state.ema["told"]) == float(state.memory["seen"])


BAD = {
    "data": {**GOOD, "target": GOOD["target"].at[1].set(jnp.nan)},
    "loss": {**GOOD, "target": GOOD["target"].at[0].set(3e38)},
    "gradient": {**GOOD, "scale": jnp.float32(0.0)},  # the loss itself stays finite
}


@pytest.mark.parametrize("kind", BAD)
def test_a_step_that_is_not_finite_changes_only_the_counters(state: TrainState, kind: str) -> None:
    state, _ = step(state, FROZEN, GOOD)
    after, metrics = step(state, FROZEN, BAD[kind])
    assert np.isfinite(metrics["loss"]) == (kind == "gradient")
    assert not np.isfinite(metrics["gradient_norm"])
    for part in ("params", "ema", "opt_state", "memory"):
        assert_same(getattr(after, part), getattr(state, part))
    assert (int(after.step), int(after.skipped), int(metrics["skipped"])) == (2, 1, 1)


def test_skipped_steps_are_counted_in_a_row(state: TrainState) -> None:
    counts = []
    for good in (True, False, False, True, False):
        state, _ = step(state, FROZEN, GOOD if good else BAD["data"])
        counts.append(int(state.skipped))
    assert counts == [0, 1, 2, 0, 1]
    assert int(state.step) == 5


@pytest.mark.parametrize("task", [understanding(), generation()], ids=lambda task: task.name)
def test_a_step_returns_a_state_of_the_same_type(task: Any) -> None:
    """Else the second step is compiled anew; a weak type, as `jnp.full` has, is enough."""
    state = jax.eval_shape(lambda: init_state(task, OPTIMIZER, seed=0, start={}))
    one_step = make_train_step(task, OPTIMIZER, seed=0, ema_decay=0.9)
    after, metrics = jax.eval_shape(one_step, state, frozen_parts(), batch())
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for path, leaf in jax.tree_util.tree_leaves_with_path((state, after)):
        assert not leaf.weak_type, path_name(path)
    assert jax.tree.map(jnp.dtype, after) == jax.tree.map(jnp.dtype, state)
    assert {leaf.shape for leaf in jax.tree.leaves(metrics)} == {()}


def test_a_decoder_learns_a_batch_and_leaves_out_a_spoilt_one() -> None:
    task = generation(drop_codes=0.0, scale_steps=1, time_mean=-1.0, time_std=0.3)
    optimizer = make_optimizer(
        OptimizerConfig(
            learning_rate=2e-2,
            warmup_steps=5,
            final_fraction=0.1,
            b2=0.99,
            weight_decay=0.0,
            clip_norm=1.0,
        ),
        steps=60,
    )
    state = jit(lambda: init_state(task, optimizer, seed=0, start={}))()
    train = jit(make_train_step(task, optimizer, seed=0, ema_decay=0.9))
    losses, frozen, clean = [], frozen_parts(), batch(rows=2)
    for _ in range(60):
        state, metrics = train(state, frozen, clean)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10]), losses
    assert int(state.skipped) == 0

    spoilt = {**clean, "wave": clean["wave"].at[1, 100].set(jnp.inf)}
    after, metrics = train(state, frozen, spoilt)
    assert int(metrics["skipped"]) == 1
    for part in ("params", "ema", "opt_state", "memory"):
        assert_same(getattr(after, part), getattr(state, part))
