from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import LANGUAGE_MODEL, QUANTIZER, drawn, frozen_parts, jit, reader

score = jit(reader().score)
FRAMES = jnp.asarray([5, 3], jnp.int32)
BATCH = {
    "text": jnp.asarray([[4, 5, 6, 7, 8, 9], [10, 11, 12, 13, 0, 0]], jnp.int32),
    "text_length": jnp.asarray([6, 4], jnp.int32),
    "answer_start": jnp.asarray([2, 3], jnp.int32),
}


@pytest.fixture(scope="module")
def frozen() -> Any:
    return frozen_parts()


@pytest.fixture(scope="module")
def embedding() -> jax.Array:
    noise = np.random.default_rng(4).standard_normal((2, 5, QUANTIZER.width))
    return jnp.asarray(noise, jnp.float32)


@pytest.fixture(scope="module")
def adapter(embedding: jax.Array) -> Any:
    return drawn(reader().adapter.init, embedding)["params"]


def test_the_score_is_the_chain_rule_over_the_answer(
    adapter: Any, frozen: Any, embedding: jax.Array
) -> None:
    """Written out for each row alone, without padding."""
    read = reader()
    nats, tokens = score(adapter, frozen, embedding, FRAMES, BATCH)
    np.testing.assert_array_equal(tokens, [4.0, 1.0])
    variables = {"params": frozen["language_model"]}
    for row in range(2):
        length, start = int(BATCH["text_length"][row]), int(BATCH["answer_start"][row])
        text = BATCH["text"][row : row + 1, :length]
        prefix = jnp.asarray(read.prefix, jnp.int32)[None]
        words = [read.model.apply(variables, x, method="embed") for x in (prefix, text)]
        heard = embedding[row : row + 1, : int(FRAMES[row])]
        audio = 0.7 * read.adapter.apply({"params": adapter}, heard)
        inputs = jnp.concatenate([words[0], audio, words[1]], axis=1)
        valid = jnp.ones(inputs.shape[:2], bool)
        hidden = read.model.apply(variables, inputs, valid, method="hidden")
        logits = read.model.apply(variables, hidden, method="logits")
        log_p = jax.nn.log_softmax(logits[0, -length - 1 : -1])
        expected = -sum(float(log_p[i, text[0, i]]) for i in range(start, length))
        assert float(nats[row]) == pytest.approx(expected, rel=1e-4)


def test_question_and_padding_are_not_scored(
    adapter: Any, frozen: Any, embedding: jax.Array
) -> None:
    full = score(adapter, frozen, embedding, FRAMES, BATCH)
    spoilt = {**BATCH, "text": BATCH["text"].at[1, 4:].set(33)}  # beyond its length
    for a, b in zip(full, score(adapter, frozen, embedding, FRAMES, spoilt), strict=True):
        np.testing.assert_array_equal(a, b)
    other = {**BATCH, "text": BATCH["text"].at[1, 0].set(33)}  # the question matters, unscored
    changed = score(adapter, frozen, embedding, FRAMES, other)
    np.testing.assert_array_equal(changed[1], full[1])
    assert float(changed[0][1]) != float(full[0][1])


def test_frames_beyond_a_row_s_length_are_not_heard(
    adapter: Any, frozen: Any, embedding: jax.Array
) -> None:
    full, _ = score(adapter, frozen, embedding, FRAMES, BATCH)
    spoilt, _ = score(adapter, frozen, embedding.at[1, 3:].set(7.0), FRAMES, BATCH)
    np.testing.assert_array_equal(full, spoilt)
    heard, _ = score(adapter, frozen, embedding.at[1, 2].add(7.0), FRAMES, BATCH)
    assert float(heard[0]) == float(full[0]) and float(heard[1]) != float(full[1])


def test_a_row_without_text_has_no_score(adapter: Any, frozen: Any, embedding: jax.Array) -> None:
    silent = {**BATCH, "text_length": jnp.asarray([6, 0], jnp.int32)}
    nats, tokens = score(adapter, frozen, embedding, FRAMES, silent)
    assert float(nats[1]) == 0.0 and float(tokens[1]) == 0.0


def test_gradients_reach_codes_and_adapter_but_not_the_language_model(
    adapter: Any, frozen: Any, embedding: jax.Array
) -> None:
    def total(adapter: Any, frozen: Any, embedding: jax.Array) -> jax.Array:
        return jnp.sum(reader().score(adapter, frozen, embedding, FRAMES, BATCH)[0])

    gradients = jit(jax.grad(total, (0, 1, 2)))(adapter, frozen, embedding)
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients[0]))
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients[1]))
    assert gradients[2][0].any(axis=-1).all() and gradients[2][1, :3].any(axis=-1).all()
    assert not gradients[2][1, 3:].any()


def test_an_answer_continues_the_question_with_the_likeliest_tokens(
    adapter: Any, frozen: Any, embedding: jax.Array
) -> None:
    """The answer's own first token is the one of least surprise."""
    answer = reader().answer(adapter, frozen, embedding, FRAMES, BATCH, 4)
    assert answer.shape == (2, 4) and answer.dtype == jnp.int32
    for row in range(2):
        start = int(BATCH["answer_start"][row])
        one = {**BATCH, "text_length": BATCH["answer_start"] + 1}

        def nats(token: int, row: int = row, start: int = start, one: dict = one) -> float:
            text = one["text"].at[row, start].set(token)
            return float(score(adapter, frozen, embedding, FRAMES, {**one, "text": text})[0][row])

        likeliest = min(range(LANGUAGE_MODEL.vocab_size), key=nats)
        assert int(answer[row, 0]) == likeliest
