import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax.models.quantizer import Quantized
from gac_jax.stages.usage import (
    information,
    perplexity,
    start_hits,
    start_usage,
    update_hits,
    update_usage,
    usage_metrics,
)
from tests.tiny import QUANTIZER


def quantized(semantic: jax.Array, residual: jax.Array) -> Quantized:
    """A batch of which only the usage matters."""
    empty = dict.fromkeys(Quantized._fields, jnp.zeros(()))
    return Quantized(**{**empty, "semantic_usage": semantic, "residual_usage": residual})


def test_usage_is_remembered() -> None:
    start = start_usage(QUANTIZER)
    now = quantized(jnp.eye(64)[3], jnp.tile(jnp.eye(16)[5], (8, 1)))
    once = update_usage(start, now, 0.9)
    np.testing.assert_allclose(once["semantic"][3], 0.1 + 0.9 / 64, rtol=1e-5)
    np.testing.assert_allclose(once["residual"][2], 0.9 / 16 + 0.1 * np.eye(16)[5], rtol=1e-5)
    twice = update_usage(once, now, 0.9)
    np.testing.assert_allclose(twice["semantic"][0], 0.81 / 64, rtol=1e-5)


def test_gradients_of_usage_weigh_codes_by_how_crowded_they_lately_were() -> None:
    """d info / d p = log p-bar + 1: descent moves mass from lately crowded codes to empty ones."""
    start = start_usage(QUANTIZER)
    crowded = {**start, "semantic": 0.5 * start["semantic"].at[7].add(0.5)}
    now = quantized(jnp.full((64,), 1 / 64), start["residual"])

    def info(p: jax.Array) -> jax.Array:
        usage = update_usage(crowded, now._replace(semantic_usage=p), 0.9)
        return information(usage["semantic"])

    p_bar = 0.9 * crowded["semantic"] + 0.1 * now.semantic_usage
    gradient = jax.grad(info)(now.semantic_usage)
    np.testing.assert_allclose(gradient, np.log(p_bar) + 1.0, atol=1e-4)
    assert gradient[7] > gradient[8]


def test_information_is_0_for_uniform_and_log_k_for_one_code() -> None:
    p = jnp.stack([jnp.full((32,), 1 / 32), jnp.eye(32)[3]])
    np.testing.assert_allclose(information(p), [0.0, np.log(32)], atol=1e-5)


def test_hits_count_valid_frames_by_domain() -> None:
    codes = jnp.zeros((2, 9, 3), jnp.int32).at[0, 0].set(jnp.asarray([5, 5, 9]))
    codes = codes.at[0, 2].set(3).at[1, :, 1:].set(7)  # row 1 has one valid frame
    frames, domain = jnp.asarray([3, 1]), jnp.asarray([1, 0])
    hits = update_hits(start_hits(QUANTIZER, 2), codes, frames, domain, 0.5)
    expected = np.zeros((2, 64))
    expected[1, [5, 9]], expected[0, 0] = [2, 1], 1
    np.testing.assert_array_equal(hits["semantic"], expected)
    assert hits["residual"].shape == (2, 8, 16)
    np.testing.assert_array_equal(hits["residual"][1, 1], 3 * np.eye(16)[3])
    again = update_hits(hits, codes, frames, domain, 0.5)
    np.testing.assert_array_equal(again["semantic"], 1.5 * expected)


def test_perplexity_counts_codes_in_even_use() -> None:
    hits = jnp.zeros((2, 64)).at[0, :10].set(0.03).at[1, 5].set(2.0)
    np.testing.assert_allclose(perplexity(hits), [10.0, 1.0], rtol=1e-3)


def test_metrics_tell_of_the_worst_residual_codebook_and_of_each_domain() -> None:
    hits = start_hits(QUANTIZER, 2)
    hits["semantic"] = hits["semantic"].at[0, :16].set(1.0).at[1, 16:32].set(1.0)
    hits["residual"] = hits["residual"].at[:, :7].set(1.0).at[0, 7, :4].set(0.5)
    metrics = usage_metrics(hits, ("speech", "sound"))
    assert float(metrics["semantic_perplexity"]) == pytest.approx(32, rel=1e-3)
    assert float(metrics["semantic_perplexity_sound"]) == pytest.approx(16, rel=1e-3)
    assert float(metrics["semantic_used"]) == pytest.approx(0.5)
    assert float(metrics["residual_perplexity"]) == pytest.approx(4, rel=1e-3)
    assert float(metrics["residual_used"]) == pytest.approx(0.25)
