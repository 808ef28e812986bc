"""Random tiny models against themselves; tests/pretrained/language_model_test.py has the oracle."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax.models.language_model import LanguageModel, LanguageModelConfig, RMSNorm, generate
from gac_jax.sharding import make_mesh, shardings
from tests.tiny import drawn, jit

CONFIG = LanguageModelConfig(
    vocab_size=50,
    width=32,
    depth=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_width=48,
    rope_theta=100.0,  # small, so that nine slots turn every pair of channels far
    norm_eps=1e-5,
    tied=True,
    qkv_bias=False,
)
UNTIED = dataclasses.replace(CONFIG, tied=False, qkv_bias=True)
GAPS = np.array(  # padding on the left and in the middle, on the right, and none
    [[0, 0, 1, 1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0, 0], [1] * 9], bool
)


def weights(config: LanguageModelConfig) -> Any:
    tokens, valid = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
    return drawn(LanguageModel(config).init, tokens, valid)["params"]


@pytest.fixture(scope="module")
def params() -> Any:
    return weights(CONFIG)


@pytest.fixture
def tokens(rng: np.random.Generator) -> jax.Array:
    return jnp.asarray(rng.integers(0, CONFIG.vocab_size, GAPS.shape), jnp.int32)


@jit
def hidden_states(params: Any, inputs: jax.Array, valid: jax.Array) -> jax.Array:
    return LanguageModel(CONFIG).apply({"params": params}, inputs, valid, method="hidden")


@jit
def scores(params: Any, tokens: jax.Array, valid: jax.Array) -> jax.Array:
    return LanguageModel(CONFIG).apply({"params": params}, tokens, valid)


def embed(params: Any, tokens: jax.Array) -> jax.Array:
    return LanguageModel(CONFIG).apply({"params": params}, tokens, method="embed")


def test_a_slot_sees_itself_and_those_before(params: Any, tokens: jax.Array) -> None:
    valid = jnp.ones(tokens.shape, bool)
    changed = tokens.at[:, 5].set((tokens[:, 5] + 1) % CONFIG.vocab_size)
    before, after = (scores(params, t, valid) for t in (tokens, changed))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.all(np.abs(before[:, 5:] - after[:, 5:]).max(axis=-1) > 1e-3)


def test_order_matters(params: Any, tokens: jax.Array) -> None:
    valid = jnp.ones(tokens.shape, bool)
    swapped = tokens[:, jnp.asarray([1, 0, *range(2, tokens.shape[1])])]
    assert (
        np.abs(scores(params, tokens, valid) - scores(params, swapped, valid))[:, -1].max() > 1e-2
    )


@pytest.mark.parametrize("filling", [0.0, 100.0, np.nan])
def test_slots_that_are_not_valid_change_nothing(
    params: Any, tokens: jax.Array, filling: float
) -> None:
    inputs = jnp.where(GAPS[..., None], embed(params, tokens), filling)
    padded = hidden_states(params, inputs, jnp.asarray(GAPS))
    for row, valid in enumerate(GAPS):
        alone = inputs[row : row + 1, valid]
        expected = hidden_states(params, alone, jnp.ones(alone.shape[:2], bool))[0]
        np.testing.assert_allclose(padded[row, valid], expected, atol=1e-5)


def test_gradients_reach_the_valid_inputs_and_no_others(params: Any, tokens: jax.Array) -> None:
    def loss(inputs: jax.Array) -> jax.Array:
        model = LanguageModel(CONFIG)
        hidden = model.apply({"params": params}, inputs, jnp.asarray(GAPS), method="hidden")
        return jnp.sum(jnp.where(GAPS[..., None], jnp.sin(hidden), 0.0))

    inputs, direction = embed(params, tokens), jnp.cos(jnp.arange(tokens.size * 32.0))
    gradient = jit(jax.grad(loss))(inputs)
    assert np.array_equal(np.abs(gradient).max(axis=-1) > 0, GAPS)
    step = 1e-2 * direction.reshape(inputs.shape)
    slope = (loss(inputs + step) - loss(inputs - step)) / 2
    np.testing.assert_allclose(slope, jnp.vdot(gradient, step), rtol=1e-2)


def test_heads_share_keys_as_if_these_were_repeated(params: Any, tokens: jax.Array) -> None:
    repeated = jax.tree.map(lambda x: x, params)
    for name in ("key", "value"):
        kernel = params["blocks"][name]["kernel"].reshape(CONFIG.depth, 32, 2, 16)
        repeated["blocks"][name] = {"kernel": kernel.repeat(2, axis=2).reshape(3, 32, 64)}
    wide = LanguageModel(dataclasses.replace(CONFIG, num_kv_heads=4))
    valid = jnp.asarray(GAPS)
    expected = scores(params, tokens, valid)
    np.testing.assert_allclose(wide.apply({"params": repeated}, tokens, valid), expected, atol=1e-4)


def test_divisors_slow_the_rotation_down(params: Any, tokens: jax.Array) -> None:
    # Rate i is theta^(-i / half), so squaring theta divides it by theta^(i / half).
    half = CONFIG.head_dim // 2
    slow = dataclasses.replace(CONFIG, rope_divisors=tuple(100.0 ** (np.arange(half) / half)))
    base = dataclasses.replace(CONFIG, rope_theta=100.0**2)
    valid = jnp.asarray(GAPS)
    a, b = (LanguageModel(c).apply({"params": params}, tokens, valid) for c in (slow, base))
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert np.abs(a - scores(params, tokens, valid)).max() > 1e-2


def test_recomputing_activations_changes_nothing(params: Any, tokens: jax.Array) -> None:
    def gradient(remat: bool) -> jax.Array:
        model = LanguageModel(dataclasses.replace(CONFIG, remat=remat))

        def loss(inputs: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(model.apply({"params": params}, inputs, GAPS, method="hidden")))

        return jit(jax.grad(loss))(embed(params, tokens))

    np.testing.assert_allclose(gradient(False), gradient(True), atol=1e-5)


@pytest.mark.usefixtures("standard_promotion")  # JAX's attention widens bfloat16 unasked
def test_bfloat16_matmuls_are_close_to_float32(params: Any, tokens: jax.Array) -> None:
    model = LanguageModel(dataclasses.replace(CONFIG, dtype="bfloat16"))
    frozen = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    logits = model.apply({"params": frozen}, tokens, jnp.asarray(GAPS))
    exact = scores(params, tokens, jnp.asarray(GAPS))
    assert logits.dtype == jnp.float32
    assert np.abs(logits - exact)[GAPS].max() < 0.05 * np.abs(exact).max()


def test_every_parameter_is_split_by_a_rule() -> None:
    layout = shardings(make_mesh(data=2, fsdp=2, tensor=2), weights(UNTIED))
    specs = jax.tree.map(lambda s: tuple(s.spec), layout)
    assert (
        specs["blocks"]["gate"] == specs["blocks"]["mlp_in"] == {"kernel": (None, "fsdp", "tensor")}
    )
    assert specs["embedding"] == ("fsdp", None)
    assert specs["head"] == {"kernel": ("fsdp", None)}


def continued(model: LanguageModel, params: Any, inputs: jax.Array, length: int) -> np.ndarray:
    """Most likely tokens, each by a pass over all slots of rows that have their gaps closed."""
    rows = np.zeros((len(GAPS), GAPS.shape[1] + length, inputs.shape[2]), np.float32)
    ends = GAPS.sum(axis=1)
    for row, valid, prompt, end in zip(rows, GAPS, np.asarray(inputs), ends, strict=True):
        row[:end] = prompt[valid]

    @jit
    def best(rows: jax.Array, ends: jax.Array) -> jax.Array:
        valid = jnp.arange(rows.shape[1])[None] < ends[:, None]
        hidden = model.apply({"params": params}, rows, valid, method="hidden")
        last = hidden[jnp.arange(len(rows)), ends - 1]
        return jnp.argmax(model.apply({"params": params}, last, method="logits"), axis=-1)

    tokens = []
    for step in range(length):
        tokens.append(best(rows, ends + step))
        words = model.apply({"params": params}, tokens[-1], method="embed")
        rows[np.arange(len(rows)), ends + step] = words
    return np.stack(tokens, axis=1)


@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
def test_generation_equals_whole_forward_passes(
    tokens: jax.Array, config: LanguageModelConfig
) -> None:
    model, params, length = LanguageModel(config), weights(config), 7
    inputs = model.apply({"params": params}, tokens, method="embed")
    expected = continued(model, params, inputs, length)
    free = generate(model, params, inputs, jnp.asarray(GAPS), length, ())
    assert free.dtype == jnp.int32
    np.testing.assert_array_equal(free, expected)

    # One row ends at its third token, one perhaps not at all; the first stop token fills up.
    stops = (CONFIG.vocab_size - 1, int(expected[0, 2]), int(expected[1, 0]))
    for row in expected:
        end = np.flatnonzero(np.isin(row, stops))
        row[end[0] + 1 if len(end) else length :] = stops[0]
    assert len({int(np.sum(row != stops[0])) for row in expected}) > 1
    stopped = generate(model, params, inputs, jnp.asarray(GAPS), length, stops)
    np.testing.assert_array_equal(stopped, expected)


def test_one_token_is_the_most_likely_next(params: Any, tokens: jax.Array) -> None:
    valid = jnp.ones(tokens.shape, bool)
    best = jnp.argmax(scores(params, tokens, valid)[:, -1:], axis=-1)
    model, inputs = LanguageModel(CONFIG), embed(params, tokens)
    np.testing.assert_array_equal(generate(model, params, inputs, valid, 1, (3,)), best)


def test_norm_is_its_formula(rng: np.random.Generator) -> None:
    # So small that epsilon is a third of the mean square.
    x, scale = 0.01 * rng.standard_normal((2, 3, 32)), rng.standard_normal(32)
    params = {"scale": jnp.asarray(scale, jnp.float32)}
    y = RMSNorm(3e-5).apply({"params": params}, jnp.asarray(x, jnp.float32))
    expected = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 3e-5) * scale
    np.testing.assert_allclose(y, expected, atol=1e-5)
