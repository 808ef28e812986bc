from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax.models.quantizer import Quantized
from gac_jax.rates import FRAME_SAMPLES, LADDER
from gac_jax.stages.understanding import (
    frames_of,
    hard_usage,
    information,
    sample_rate_index,
    standardise,
    usage_metrics,
)
from tests.tiny import ENCODER, QUANTIZER, WEIGHTS, batch, drawn, jit, understanding

KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def params() -> Any:
    return drawn(understanding().init)


@cache
def program(**changes: Any) -> Any:
    """Loss, metrics, memory and gradient of a task as one compiled function."""
    task = understanding(**{k: dict(v) if k == "weights" else v for k, v in changes.items()})

    def run(params: Any, memory: Any, batch: Any) -> Any:
        (loss, (metrics, memory)), gradient = jax.value_and_grad(task.loss, has_aux=True)(
            params, {}, memory, batch, KEY
        )
        return loss, metrics, memory, gradient

    return jit(run)


@pytest.fixture(scope="module")
def full(params: Any) -> Any:
    """Loss, metrics, memory and gradient with every term."""
    return program()(params, understanding().init_memory(), batch())


def any_gradient(tree: Any) -> bool:
    return any(leaf.any() for leaf in jax.tree.leaves(tree))


def test_the_loss_is_the_weighted_sum_of_its_terms(full: Any) -> None:
    loss, metrics, _, _ = full
    expected = sum(weight * float(metrics[name]) for name, weight in WEIGHTS.items())
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert all(np.isfinite(value) for value in metrics.values())


def test_every_parameter_learns_but_the_frozen_basis(full: Any) -> None:
    paths = jax.tree_util.tree_leaves_with_path(full[3])
    still = {jax.tree_util.keystr(p, simple=True, separator="/") for p, g in paths if not g.any()}
    assert still == {"quantizer/basis"}
    assert all(np.isfinite(g).all() for _, g in paths)


def test_a_frozen_semantic_tower_gets_no_gradient(params: Any, full: Any) -> None:
    assert any_gradient(full[3]["encoder"]["semantic"])
    run = program(train_semantic_tower=False)
    loss, _, _, gradient = run(params, understanding().init_memory(), batch())
    assert not any_gradient(gradient["encoder"]["semantic"])
    assert any_gradient(gradient["encoder"]["acoustic"]) and any_gradient(gradient["quantizer"])
    assert float(loss) == pytest.approx(float(full[0]), rel=1e-5)


def test_at_rate_0_and_without_other_terms_nothing_acoustic_learns(params: Any) -> None:
    run = program(weights=(("mel", 2.0), ("feature", 0.0)), rate_weights=(1.0, 0, 0, 0, 0))
    loss, metrics, _, gradient = run(params, understanding().init_memory(), batch())
    assert set(metrics) == {"mel", "semantic_perplexity", "residual_perplexity"}
    assert float(loss) == pytest.approx(2.0 * float(metrics["mel"]))
    assert not any_gradient(gradient["feature_head"]) and any_gradient(gradient["mel_head"])
    assert not any_gradient(gradient["encoder"]["acoustic"])
    assert any_gradient(gradient["encoder"]["semantic"])


def test_an_unknown_term_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['mell'\].*'mel'"):
        understanding(weights={"mell": 1.0})


def test_the_feature_is_a_target_not_a_pupil(params: Any, rng: np.random.Generator) -> None:
    """The encoder must not make its feature easy to guess: it learns through the codes alone."""
    task, frames = understanding(), jnp.asarray([4, 3])
    semantic = jnp.asarray(rng.standard_normal((2, 4, 4 * ENCODER.width)), jnp.float32)
    acoustic = jnp.ones((2, 4, ENCODER.acoustic_features))

    def error(semantic: jax.Array, codes_of: jax.Array) -> jax.Array:
        variables = {"params": params["quantizer"]}
        quantized = task.quantizer.apply(variables, codes_of, acoustic, frames, frames)
        return task._feature_error(params, quantized, semantic, frames)

    to_target, to_pupil = jit(jax.grad(error, (0, 1)))(semantic, semantic)
    assert not to_target.any() and to_pupil.any()


def test_rows_beyond_their_length_do_not_count(params: Any, full: Any) -> None:
    task, longer = understanding(), batch()
    longer["wave"] = jnp.pad(longer["wave"], ((0, 0), (0, 2 * FRAME_SAMPLES)))
    loss, _ = jit(task.loss)(params, {}, task.init_memory(), longer, KEY)
    assert float(loss) == pytest.approx(float(full[0]), rel=1e-3)


def test_usage_is_remembered(params: Any, full: Any) -> None:
    memory = full[2]
    start = understanding().init_memory()
    again = program()(params, memory, batch())[2]
    assert jax.tree.structure(again) == jax.tree.structure(start)
    for name in ("semantic", "residual", "semantic_hits", "residual_hits"):
        now = (memory[name] - 0.9 * start[name]) / 0.1  # this batch's usage
        np.testing.assert_allclose(now.sum(axis=-1), 1.0, rtol=1e-4)
        np.testing.assert_allclose(again[name], 0.9 * memory[name] + 0.1 * now, atol=1e-5)


def test_the_information_term_sees_the_remembered_usage(params: Any, full: Any) -> None:
    metrics, memory = full[1], full[2]
    expected = information(memory["semantic"]) + jnp.mean(information(memory["residual"]))
    assert float(metrics["info"]) == pytest.approx(float(expected), rel=1e-4)


def test_gradients_of_usage_weigh_codes_by_how_crowded_they_lately_were() -> None:
    """d info / d p = log p-bar + 1: descent moves mass from lately crowded codes to empty ones."""
    task, frames = understanding(), jnp.asarray([4])
    start = task.init_memory()
    crowded = {**start, "semantic": 0.5 * start["semantic"].at[7].add(0.5)}
    now = Quantized(
        codes=jnp.zeros((1, 9, 4), jnp.int32),
        semantic=jnp.zeros(()),
        embedding=jnp.zeros(()),
        loss=jnp.zeros(()),
        semantic_usage=jnp.full((64,), 1 / 64),
        residual_usage=start["residual"],
        confidence=jnp.zeros(()),
    )

    def info(p: jax.Array) -> jax.Array:
        usage, _ = task._update_usage(crowded, now._replace(semantic_usage=p), frames)
        return information(usage["semantic"])

    p_bar = 0.9 * crowded["semantic"] + 0.1 * now.semantic_usage
    gradient = jax.grad(info)(now.semantic_usage)
    np.testing.assert_allclose(gradient, np.log(p_bar) + 1.0, atol=1e-4)
    assert gradient[7] > gradient[8]


def test_an_empty_batch_is_finite(params: Any) -> None:
    empty = {k: jnp.zeros_like(v) for k, v in batch().items()}
    found = program()(params, understanding().init_memory(), empty)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_frames_count_the_last_partial_one() -> None:
    samples = jnp.asarray([0, 1, 2560, 2561], jnp.int32)
    np.testing.assert_array_equal(frames_of({"num_samples": samples}), [0, 1, 1, 2])


def test_rates_are_drawn_from_the_ladder_by_weight() -> None:
    drawn = np.asarray(sample_rate_index(KEY, (0.5, 0.0, 0.2, 0.2, 0.1), 20_000))
    shares = [np.mean(drawn == k) for k in LADDER]
    np.testing.assert_allclose(shares, [0.5, 0.0, 0.2, 0.2, 0.1], atol=0.02)
    assert drawn.dtype == np.int32


def test_hard_usage_is_a_histogram_of_the_valid_frames() -> None:
    codes = jnp.zeros((2, 9, 3), jnp.int32).at[0, 0].set(jnp.asarray([5, 5, 9]))
    codes = codes.at[0, 2].set(3).at[1, :, 1:].set(7)  # row 1 has one valid frame
    hits = hard_usage(codes, jnp.asarray([3, 1]), QUANTIZER)
    semantic = np.zeros(64)
    semantic[[5, 9, 0]] = [0.5, 0.25, 0.25]
    np.testing.assert_allclose(hits["semantic_hits"], semantic, atol=1e-6)
    assert hits["residual_hits"].shape == (8, 16)
    np.testing.assert_allclose(hits["residual_hits"][1, [0, 3]], [0.25, 0.75], atol=1e-6)
    np.testing.assert_allclose(hits["residual_hits"].sum(axis=1), 1.0, rtol=1e-5)


def test_perplexity_counts_codes_in_even_use() -> None:
    memory = {
        "semantic_hits": jnp.zeros(64).at[:10].set(0.03),
        "residual_hits": jnp.zeros((2, 16)).at[0, :4].set(0.1).at[1, 5].set(0.2),
    }
    metrics = usage_metrics(memory)
    assert float(metrics["semantic_perplexity"]) == pytest.approx(10, rel=1e-3)
    assert float(metrics["residual_perplexity"]) == pytest.approx(2.5, rel=1e-3)


def test_standardise_ignores_padding_and_survives_constant_channels(
    rng: np.random.Generator,
) -> None:
    x = 5.0 + 3.0 * jnp.asarray(rng.standard_normal((2, 40, 3)), jnp.float32)
    x = x.at[:, :, 2].set(4.0).at[1, 20:].set(1e3)
    valid = jnp.arange(40)[None] < jnp.asarray([[40], [20]])
    found = np.asarray(standardise(x, valid))[np.asarray(valid)]
    np.testing.assert_allclose(found.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(found.std(axis=0), [1.0, 1.0, 0.0], atol=1e-4)
