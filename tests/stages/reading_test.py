import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax.stages.reading import SHARPNESS
from tests.tiny import LANGUAGE_MODEL, QUANTIZER, drawn, frozen_parts, jit, reader

score, align = jit(reader().score), jit(reader().align)
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
    """Random, and so that no frame is blank."""
    return with_blank(drawn(reader().adapter.init, embedding)["params"], -9.0)


def with_blank(adapter: Any, bias: float) -> Any:
    return {**adapter, "blank": {**adapter["blank"], "bias": jnp.asarray([bias], jnp.float32)}}


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
        audio = 0.7 * read.adapter.apply({"params": adapter}, heard)[0]
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
    blank = gradients[0].pop("blank")
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients[0]))
    assert not any(leaf.any() for leaf in jax.tree.leaves(blank))  # which alignment decides
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


def test_blank_frames_are_not_heard(adapter: Any, frozen: Any, embedding: jax.Array) -> None:
    """What is left reads as if the others were not there."""
    _, odds = reader().adapter.apply({"params": adapter}, embedding)
    middle = float(jnp.median(odds[0]))
    gated = with_blank(adapter, -9.0 - middle)  # blank from the median of the first row on
    kept = np.asarray(odds[0] <= middle)
    assert 0 < kept.sum() < 5
    found, _ = score(gated, frozen, embedding, FRAMES, BATCH)
    alone = jnp.concatenate([embedding[:1, kept], embedding[:1, ~kept]], axis=1)
    pair = jnp.concatenate([alone, embedding[1:]])
    frames = FRAMES.at[0].set(int(kept.sum()))
    expected, _ = score(adapter, frozen, pair, frames, BATCH)
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)


def test_alignment_sums_over_all_ways_to_place_the_answer(
    adapter: Any, frozen: Any, embedding: jax.Array
) -> None:
    """Every path of three frames, each blank or one of the batch's words, written out."""
    adapter = with_blank(adapter, 0.3)
    batch = {**BATCH, "text_length": jnp.asarray([4, 4], jnp.int32)}  # answers (6, 7) and (13,)
    frames = jnp.asarray([3, 3], jnp.int32)
    nats, tokens = align(adapter, frozen, embedding, frames, batch)
    np.testing.assert_array_equal(tokens, [2.0, 1.0])
    vectors, blank = reader().adapter.apply({"params": adapter}, embedding)
    words = np.asarray([0, 6, 7, 13])  # 0 stands in empty places
    known = frozen["language_model"]["embedding"][words] / 0.7
    log_p = jax.nn.log_softmax(SHARPNESS * vectors @ known.T / vectors.shape[-1] ** 0.5)
    log_p = np.asarray(log_p + jax.nn.log_sigmoid(-blank)[..., None], np.float64)
    quiet = np.asarray(jax.nn.log_sigmoid(blank), np.float64)
    for row, answer in enumerate([(6, 7), (13,)]):
        total = 0.0
        for path in itertools.product([None, *words], repeat=3):
            if tuple(w for w, _ in itertools.groupby(path) if w is not None) == answer:
                steps = (
                    quiet[row, n] if w is None else log_p[row, n, list(words).index(w)]
                    for n, w in enumerate(path)
                )
                total += np.exp(sum(steps))
        assert float(nats[row]) == pytest.approx(-np.log(total), rel=1e-5)


def test_answers_that_fit_no_alignment_have_no_score(
    adapter: Any, frozen: Any, embedding: jax.Array
) -> None:
    batch = {**BATCH, "text_length": jnp.asarray([6, 3], jnp.int32)}  # four tokens, and none
    for frames, expected in ((4, [4.0, 0.0]), (3, [0.0, 0.0])):
        nats, tokens = align(adapter, frozen, embedding, jnp.full((2,), frames), batch)
        np.testing.assert_array_equal(tokens, expected)
        np.testing.assert_array_equal(nats > 0, np.asarray(expected) > 0)
    double = {**batch, "text": batch["text"].at[0, 3].set(6)}  # needs a blank in between
    _, tokens = align(adapter, frozen, embedding, jnp.full((2,), 4), double)
    np.testing.assert_array_equal(tokens, [0.0, 0.0])


def test_alignment_counts_neither_question_nor_end(
    adapter: Any, frozen: Any, embedding: jax.Array
) -> None:
    full = align(adapter, frozen, embedding, FRAMES, BATCH)
    other = {**BATCH, "text": BATCH["text"].at[:, 0].set(33)}
    ended = {**BATCH, "text": BATCH["text"].at[0, 5].set(0)}
    for a, b in zip(full, align(adapter, frozen, embedding, FRAMES, other), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(align(adapter, frozen, embedding, FRAMES, ended)[1], [3.0, 1.0])


def test_alignment_teaches_codes_and_adapter_but_not_the_language_model(
    adapter: Any, frozen: Any, embedding: jax.Array
) -> None:
    def total(adapter: Any, frozen: Any, embedding: jax.Array) -> jax.Array:
        return jnp.sum(reader().align(adapter, frozen, embedding, FRAMES, BATCH)[0])

    gradients = jit(jax.grad(total, (0, 1, 2)))(adapter, frozen, embedding)
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients[0]))
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients[1]))
    assert gradients[2][0].any(axis=-1).all() and gradients[2][1, :3].any(axis=-1).all()
    assert not gradients[2][1, 3:].any()
