from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gac_jax import flow
from gac_jax.stages import adversarial as stage
from gac_jax.stages.adversarial import TERMS
from gac_jax.training.optimizer import path_name
from gac_jax.training.state import init_state, make_train_step
from tests.tiny import adversarial, batch, drawn, frozen_parts, jit

KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def frozen() -> Any:
    return frozen_parts()


@pytest.fixture(scope="module")
def params() -> Any:
    return drawn(adversarial().init)


@pytest.fixture(scope="module")
def gradients(frozen: Any, params: Any) -> Any:
    """(weights of TERMS, batch) -> loss, metrics and gradients."""

    def loss(params: Any, weights: tuple, rows: Any) -> Any:
        task = adversarial(weights=tuple(zip(TERMS, weights, strict=True)))
        value, (metrics, _) = task.loss(params, frozen, {}, rows, KEY)
        return value, metrics

    compiled = jit(jax.value_and_grad(loss, has_aux=True))

    def run(weights: tuple[float, ...], rows: Any = None) -> Any:
        given = batch() if rows is None else rows
        (value, metrics), found = compiled(params, jnp.asarray(weights), given)
        return value, metrics, found

    return run


def size(tree: Any) -> float:
    return float(optax.tree.norm(tree))


def test_the_loss_is_the_weighted_sum_and_the_critics(gradients: Any) -> None:
    weights = (1.0, 2.0, 3.0, 4.0)
    value, metrics, _ = gradients(weights)
    terms = sum(w * float(metrics[name]) for w, name in zip(weights, TERMS, strict=True))
    assert metrics.keys() == {*TERMS, "critic"}
    assert float(value) == pytest.approx(terms + float(metrics["critic"]), rel=1e-5)


def test_neither_learns_for_the_other(gradients: Any) -> None:
    *_, critic_only = gradients((0.0, 0.0, 0.0, 0.0))
    assert size(critic_only["decoder"]) == 0.0 and size(critic_only["critic"]) > 0.0
    *_, both = gradients((1.0, 1.0, 1.0, 1.0))
    jax.tree.map(np.testing.assert_array_equal, both["critic"], critic_only["critic"])


@pytest.mark.parametrize("term", range(4))
def test_every_term_trains_the_decoder(gradients: Any, term: int) -> None:
    *_, found = gradients(tuple(np.eye(4)[term]))
    for path, leaf in jax.tree_util.tree_leaves_with_path(found["decoder"]):
        unused = path_name(path).endswith(("null", "lost"))  # codes are told, and none is lost here
        assert bool(np.any(leaf)) is not unused, path_name(path)


def test_an_empty_batch_is_finite(gradients: Any) -> None:
    empty = {k: jnp.zeros_like(v) for k, v in batch().items()}
    value, _, found = gradients((1.0, 1.0, 1.0, 1.0), empty)
    assert np.isfinite(float(value)) and np.isfinite(size(found))


def test_silence_is_finite(gradients: Any) -> None:
    rows = batch()
    value, _, found = gradients((1.0, 1.0, 1.0, 1.0), {**rows, "wave": 0.0 * rows["wave"]})
    assert np.isfinite(float(value)) and np.isfinite(size(found))


def test_what_follows_a_row_does_not_count(gradients: Any) -> None:
    rows = batch()
    ends = 2560 * -(-rows["num_samples"] // 2560)
    beyond = jnp.arange(rows["wave"].shape[1])[None] >= ends[:, None] + 1000  # clear of its windows
    assert beyond.any()
    loud = {**rows, "wave": jnp.where(beyond, 1.0, rows["wave"])}
    values = [float(gradients((1.0, 1.0, 1.0, 1.0), given)[0]) for given in (rows, loud)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_spectra_are_sampled_as_a_receiver_does(frozen: Any, params: Any) -> None:
    """Recomputed the long way: two steps of mean velocities from noise of the temperature."""
    task, rows = adversarial(), 2
    frames, rate = jnp.full((rows,), 4), jnp.asarray([0, 8])
    lost = jnp.zeros((rows, 4), bool)
    embedding = jax.random.normal(KEY, (rows, 4, 16))
    given = (embedding, rate, lost, frames)
    made, expected = jit(task._sample)(params["decoder"], *given, KEY)

    @jit
    def by_hand() -> jax.Array:
        variables = {"params": params["decoder"]}
        condition = task.decoder.apply(
            variables, embedding, rate, rate >= 0, lost, frames, method="condition"
        )
        x = 0.36 * jax.random.normal(KEY, (rows, 16, 640))
        times = flow.time_grid(2)
        for start, end in zip(times[:-1], times[1:], strict=True):
            t, until = (jnp.full((rows,), time) for time in (start, end))
            x1 = task.decoder.apply(variables, x, t, condition, frames, until)
            x = x + (end - start) * flow.velocity(x1, x, t)
        return condition.mean + jnp.exp(condition.log_deviation) * x, condition.mean

    for found, wanted in zip((made, expected), by_hand(), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_what_is_heard_is_relative_to_its_variance() -> None:
    right = jax.random.normal(KEY, (2, 8, 3))
    valid = jnp.arange(8)[None] < jnp.asarray([8, 5])[:, None]
    mean = np.asarray(right)[np.asarray(valid)].mean(axis=0)
    assert float(stage._unexplained(right, right, valid)) == 0.0
    guess = jnp.broadcast_to(mean, right.shape)
    assert float(stage._unexplained(right, guess, valid)) == pytest.approx(1.0, rel=5e-3)
    beyond = jnp.where(valid[:, :, None], right, 9.0)
    assert float(stage._unexplained(right, beyond, valid)) == 0.0


def test_acoustics_are_those_of_code_frames() -> None:
    spectrum = jax.random.normal(KEY, (2, 8, 640))
    found = stage._acoustics(spectrum)
    assert found.shape == (2, 2, 128)
    later = stage._acoustics(spectrum.at[:, :4].add(1.0))
    np.testing.assert_array_equal(found[:, 1], later[:, 1])
    # One more everywhere is one more of the lowest order, and no ripple.
    change = np.asarray(later - found)[:, 0]
    assert (change[:, 0] > 7.9).all() and np.abs(change[:, 1:]).max() < 1e-3


@pytest.mark.usefixtures("standard_promotion")
def test_training_brings_the_decoder_nearer(frozen: Any) -> None:
    task = adversarial()
    optimizer = optax.adam(3e-3)
    state = init_state(task, optimizer, 0, drawn(task.init))
    step = jit(make_train_step(task, optimizer, 0, 0.9))
    history = []
    for _ in range(30):
        state, metrics = step(state.replace(step=jnp.int32(0)), frozen, batch())  # the same draws
        history.append({k: float(v) for k, v in metrics.items()})
    for name in ("matching", "hearing", "acoustic"):
        assert history[-1][name] < 0.8 * history[0][name], name
