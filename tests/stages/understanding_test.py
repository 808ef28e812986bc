from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax.models.kmeans import centroids
from gac_jax.rates import FRAME_SAMPLES, LADDER
from gac_jax.stages.understanding import (
    READ,
    frames_of,
    neighbour,
    sample_rate_index,
    standardise,
)
from gac_jax.stages.usage import information
from tests.tiny import (
    ENCODER,
    QUANTIZER,
    WEIGHTS,
    batch,
    drawn,
    frozen_parts,
    jit,
    understanding,
)

KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def params() -> Any:
    params = drawn(understanding(listens=True).init)
    blank = params["adapter"]["blank"]
    blank["bias"] = blank["bias"] - 5.0  # or a random adapter may call every frame blank
    return params


@pytest.fixture(scope="module")
def frozen() -> Any:
    return {"language_model": frozen_parts()["language_model"]}


def memory(params: Any) -> Any:
    return understanding().init_memory(params)


@cache
def program(**changes: Any) -> Any:
    """Loss, metrics, memory, and the gradients of parameters and of what is frozen, compiled."""
    changes = {k: dict(v) if k == "weights" else v for k, v in changes.items()}
    task = understanding(**{"listens": True, **changes})

    def run(params: Any, frozen: Any, memory: Any, batch: Any) -> Any:
        (loss, (metrics, memory)), gradients = jax.value_and_grad(
            task.loss, argnums=(0, 1), has_aux=True
        )(params, frozen, memory, batch, KEY)
        return loss, metrics, memory, *gradients

    return jit(run)


@pytest.fixture(scope="module")
def full(params: Any, frozen: Any) -> Any:
    """What `program` returns with every term."""
    return program()(params, frozen, memory(params), batch())


def any_gradient(tree: Any) -> bool:
    return any(leaf.any() for leaf in jax.tree.leaves(tree))


def test_the_loss_is_the_weighted_sum_of_its_terms(full: Any) -> None:
    loss, metrics, *_ = full
    expected = sum(weight * float(metrics[name]) for name, weight in WEIGHTS.items())
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert all(np.isfinite(value) for value in metrics.values())


def test_every_parameter_learns_but_the_frozen_basis(full: Any) -> None:
    paths = jax.tree_util.tree_leaves_with_path(full[3])
    still = {jax.tree_util.keystr(p, simple=True, separator="/") for p, g in paths if not g.any()}
    assert still == {"quantizer/basis", "quantizer/residual_codes"}  # these follow the memory
    assert all(np.isfinite(g).all() for _, g in paths)


def test_the_language_model_is_frozen_and_teaches_the_encoder(params: Any, frozen: Any) -> None:
    _, metrics, _, to_params, to_frozen = program(weights=(("text", 1.0),))(
        params, frozen, memory(params), batch()
    )
    assert metrics["text"] > 0.0
    assert not any_gradient(to_frozen)
    assert any_gradient(to_params["encoder"]["semantic"])  # through the codes
    assert any_gradient(to_params["encoder"]["acoustic"])
    assert any_gradient(to_params["quantizer"]["semantic_in"])
    assert any_gradient(to_params["adapter"])
    assert not any_gradient(to_params["mel_head"])


def test_the_text_is_read_at_the_rate_of_each_row(params: Any, frozen: Any) -> None:
    run = program(weights=(("text", 1.0),), rate_weights=(1.0, 0.0, 0.0, 0.0, 0.0))
    gradient = run(params, frozen, memory(params), batch())[3]
    assert any_gradient(gradient["encoder"]["semantic"])
    assert not any_gradient(gradient["encoder"]["acoustic"])  # no residual code is in use


def test_texts_are_scored_per_token(params: Any, frozen: Any) -> None:
    task, rows = understanding(listens=True), batch()
    none = {**rows, "text_length": jnp.zeros_like(rows["text_length"])}
    first = {**rows, "text_length": rows["text_length"].at[1:].set(0)}
    run = program(weights=(("text", 1.0),), rate_weights=(1.0, 0.0, 0.0, 0.0, 0.0))
    assert float(run(params, frozen, memory(params), none)[0]) == 0.0
    rows["text_length"], first["text_length"] = (
        x["text_length"].at[0].set(7) for x in (rows, first)
    )
    frames = frames_of(rows)
    features = task.features.apply({"params": params["encoder"]}, rows["wave"], frames)
    embedding = task.quantizer.apply(
        {"params": params["quantizer"]}, *features, frames, jnp.zeros_like(frames)
    ).embedding
    nats, tokens = task.reader.score(params["adapter"], frozen, embedding, frames, rows)
    assert float(tokens[0]) == 4.0  # of 7 tokens, the first 3 are the question
    found = [float(run(params, frozen, memory(params), x)[0]) for x in (first, rows)]
    expected = [float(nats[0]) / 4.0, float(jnp.sum(nats) / jnp.sum(tokens))]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_words_find_their_places_through_the_codes(params: Any, frozen: Any) -> None:
    run = program(weights=(("alignment", 1.0),))
    _, metrics, _, to_params, to_frozen = run(params, frozen, memory(params), batch())
    assert metrics["alignment"] > 0.0
    assert not any_gradient(to_frozen)
    for part in (("encoder", "semantic"), ("quantizer", "semantic_in"), ("adapter", "blank")):
        assert any_gradient(to_params[part[0]][part[1]])
    assert not any_gradient(to_params["mel_head"])


def test_the_language_model_is_asked_once_words_have_found_their_places(
    params: Any, frozen: Any
) -> None:
    run = program(weights=(("text", 1.0),), text_after=2)
    late = run(params, frozen, {**memory(params), "steps": jnp.int32(2)}, batch())
    early = run(params, frozen, {**memory(params), "steps": jnp.int32(1)}, batch())
    assert float(late[0]) > 0.0 and any_gradient(late[3]["adapter"])
    assert float(early[0]) == 0.0 and not any_gradient(early[3])


def test_without_a_language_model_the_text_is_left_out(params: Any) -> None:
    silent = {k: v for k, v in params.items() if k != "adapter"}
    run = program(listens=False)
    loss, metrics, *_ = run(silent, {}, memory(params), batch())
    assert not set(READ) & set(metrics)
    expected = sum(WEIGHTS[name] * float(metrics[name]) for name in WEIGHTS if name not in READ)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_objective_of_the_report_is_one_choice_of_weights(params: Any, frozen: Any) -> None:
    run = program(weights=(("text", 1.0), ("info", 0.5)))
    loss, metrics, *_ = run(params, frozen, memory(params), batch())
    expected = float(metrics["text"]) + 0.5 * float(metrics["info"])
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert not {"mel", "feature", "codes", "confidence"} & set(metrics)


def test_features_pass_unquantised_in_the_warm_up(params: Any, frozen: Any) -> None:
    """Then the loss is smooth in the features, and after it, it moves in steps."""
    run = program(weights=(("mel", 1.0),), warmup_steps=2, rate_weights=(0.0, 0.0, 0.0, 0.0, 1.0))
    warm, cold = memory(params), {**memory(params), "steps": jnp.int32(2)}
    nudged = jax.tree.map(lambda x: x, params)
    added = nudged["encoder"]["acoustic"]["output"]
    added["bias"] = added["bias"] + 1e-3
    losses = {
        name: [float(run(p, frozen, start, batch())[0]) for p in (params, nudged)]
        for name, start in (("warm", warm), ("cold", cold))
    }
    assert losses["warm"][0] != losses["cold"][0]
    assert losses["warm"][0] != losses["warm"][1]
    assert int(run(params, frozen, warm, batch())[2]["steps"]) == 1


def test_residual_codebooks_follow_the_memory(params: Any, full: Any) -> None:
    task = understanding()
    start = memory(params)
    same = task.refresh(params, start)
    before, after = (p["quantizer"]["residual_codes"] for p in (params, same))
    np.testing.assert_allclose(before, after, rtol=1e-5)
    moved = task.refresh(params, full[2])
    np.testing.assert_array_equal(moved["quantizer"]["residual_codes"], centroids(full[2]["means"]))
    assert not np.allclose(moved["quantizer"]["residual_codes"], before)
    assert moved["encoder"] is params["encoder"]


def test_evaluation_says_what_codes_tell_about_the_text(params: Any, frozen: Any) -> None:
    rows = batch()
    task = understanding(listens=True)
    measure = jit(task.evaluate)
    found = measure(params, frozen, memory(params), rows, KEY)
    for k in (0, 8):
        gap = found[f"text_wrong_k{k}"] - found[f"text_right_k{k}"]
        assert found[f"information_k{k}"] != 0.0
        assert np.sign(found[f"information_k{k}"]) == np.sign(gap)
    # The same audio everywhere: another clip's is as good as the right one.
    alike = {**rows, "wave": jnp.tile(rows["wave"][:1], (8, 1))}
    alike["num_samples"] = jnp.full_like(rows["num_samples"], rows["num_samples"][0])
    found = measure(params, frozen, memory(params), alike, KEY)
    assert float(found["information_k8"]) == pytest.approx(0.0, abs=1e-4)
    silent = {**rows, "text_length": jnp.zeros_like(rows["text_length"])}
    assert np.isnan(measure(params, frozen, memory(params), silent, KEY)["information_k0"])


def test_a_neighbour_is_the_next_row_of_the_same_domain() -> None:
    found = neighbour(jnp.asarray([0, 1, 0, 2, 0, 1], jnp.int32))
    np.testing.assert_array_equal(found, [2, 5, 4, 3, 0, 1])


def test_a_frozen_semantic_tower_gets_no_gradient(params: Any, frozen: Any, full: Any) -> None:
    assert any_gradient(full[3]["encoder"]["semantic"])
    run = program(train_semantic_tower=False)
    loss, _, _, gradient, _ = run(params, frozen, memory(params), batch())
    assert not any_gradient(gradient["encoder"]["semantic"])
    assert any_gradient(gradient["encoder"]["acoustic"]) and any_gradient(gradient["quantizer"])
    assert float(loss) == pytest.approx(float(full[0]), rel=1e-5)


def test_at_rate_0_and_without_other_terms_nothing_acoustic_learns(
    params: Any, frozen: Any
) -> None:
    run = program(weights=(("mel", 2.0), ("feature", 0.0)), rate_weights=(1.0, 0, 0, 0, 0))
    loss, metrics, _, gradient, _ = run(params, frozen, memory(params), batch())
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
    acoustic = jnp.ones((2, 4, QUANTIZER.residual_dim))

    def error(semantic: jax.Array, codes_of: jax.Array) -> jax.Array:
        variables = {"params": params["quantizer"]}
        quantized = task.quantizer.apply(variables, codes_of, acoustic, frames, frames)
        return task._feature_error(params, quantized, semantic, frames)

    to_target, to_pupil = jit(jax.grad(error, (0, 1)))(semantic, semantic)
    assert not to_target.any() and to_pupil.any()


def test_rows_beyond_their_length_do_not_count(params: Any, frozen: Any) -> None:
    task = understanding(listens=True)

    def loss(padding: int) -> float:
        longer = batch()
        longer["wave"] = jnp.pad(longer["wave"], ((0, 0), (0, padding * FRAME_SAMPLES)))
        return float(jit(task.loss)(params, frozen, memory(params), longer, KEY)[0])

    # From one on: without any, Whisper's log-mel mirrors the last samples.
    assert loss(2) == pytest.approx(loss(4), rel=1e-3)


def test_the_information_term_sees_the_remembered_usage(full: Any) -> None:
    metrics, usage = full[1], full[2]["usage"]
    expected = information(usage["semantic"]) + jnp.mean(information(usage["residual"]))
    assert float(metrics["info"]) == pytest.approx(float(expected), rel=1e-4)


def test_memory_keeps_its_structure(params: Any, full: Any) -> None:
    start = memory(params)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (start, full[2])]
    assert shapes[0] == shapes[1]


def test_an_empty_batch_is_finite_and_moves_no_codebook(params: Any, frozen: Any) -> None:
    empty = {k: jnp.zeros_like(v) for k, v in batch().items()}
    found = program()(params, frozen, memory(params), empty)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    for a, b in zip(found[2]["means"], memory(params)["means"], strict=True):
        np.testing.assert_array_equal(a, b)


def test_frames_count_the_last_partial_one() -> None:
    samples = jnp.asarray([0, 1, 2560, 2561], jnp.int32)
    np.testing.assert_array_equal(frames_of({"num_samples": samples}), [0, 1, 1, 2])


def test_rates_are_drawn_from_the_ladder_by_weight() -> None:
    drawn = np.asarray(sample_rate_index(KEY, (0.5, 0.0, 0.2, 0.2, 0.1), 20_000))
    shares = [np.mean(drawn == k) for k in LADDER]
    np.testing.assert_allclose(shares, [0.5, 0.0, 0.2, 0.2, 0.1], atol=0.02)
    assert drawn.dtype == np.int32


def test_standardise_ignores_padding_and_survives_constant_channels(
    rng: np.random.Generator,
) -> None:
    x = 5.0 + 3.0 * jnp.asarray(rng.standard_normal((2, 40, 3)), jnp.float32)
    x = x.at[:, :, 2].set(4.0).at[1, 20:].set(1e3)
    valid = jnp.arange(40)[None] < jnp.asarray([[40], [20]])
    found = np.asarray(standardise(x, valid))[np.asarray(valid)]
    np.testing.assert_allclose(found.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(found.std(axis=0), [1.0, 1.0, 0.0], atol=1e-4)
