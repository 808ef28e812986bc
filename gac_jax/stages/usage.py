"""How evenly codebooks are used: the information term L_info, and metrics of the codes in use."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gac_jax.models.quantizer import Quantized, QuantizerConfig
from gac_jax.stages.task import Metrics, Params

USED = 0.05  # decayed hits below which a code counts as out of use


def start_usage(config: QuantizerConfig) -> Params:
    """Mean soft assignments p-bar to begin with, uniform: {"semantic", "residual"}."""
    return {
        "semantic": jnp.full((config.semantic_size,), 1.0 / config.semantic_size, jnp.float32),
        "residual": jnp.full(
            (config.num_residual, config.residual_size), 1.0 / config.residual_size, jnp.float32
        ),
    }


def update_usage(usage: Params, quantized: Quantized, decay: float) -> Params:
    """Mixes the batch's p-bar into the remembered one; gradients see the batch's part alone."""
    now = {"semantic": quantized.semantic_usage, "residual": quantized.residual_usage}
    return {k: p + decay * jax.lax.stop_gradient(usage[k] - p) for k, p in now.items()}


def information(p: jax.Array) -> jax.Array:
    """KL(p || U) = log K - H(p) in nats over the last axis."""
    return jnp.log(float(p.shape[-1])) + jnp.sum(p * jnp.log(p + 1e-12), axis=-1)


def start_hits(config: QuantizerConfig, num_domains: int) -> Params:
    """No hits: {"semantic": (D, K), "residual": (D, R, K)} float32 for D domains."""
    return {
        "semantic": jnp.zeros((num_domains, config.semantic_size), jnp.float32),
        "residual": jnp.zeros((num_domains, config.num_residual, config.residual_size)),
    }


def update_hits(
    hits: Params, codes: jax.Array, frames: jax.Array, domain: jax.Array, decay: float
) -> Params:
    """Decays the hits and adds those of a batch.

    Args:
      hits: so far.
      codes: (B, 1 + R, N) int32.
      frames: (B,) int32, the code frames that count.
      domain: (B,) int32.
      decay: weight of the past.
    """
    valid = (jnp.arange(codes.shape[2])[None] < frames[:, None]).astype(jnp.float32)
    rows = jnp.broadcast_to(domain[:, None], valid.shape)

    def add(hits: jax.Array, codes: jax.Array) -> jax.Array:
        return (decay * hits).at[rows, codes].add(valid)

    residual = jax.vmap(add, in_axes=1, out_axes=1)
    return {
        "semantic": add(hits["semantic"], codes[:, 0]),
        "residual": residual(hits["residual"], codes[:, 1:]),
    }


def perplexity(hits: jax.Array) -> jax.Array:
    """Number of codes, in even use, that would be as varied as hits (..., K) are."""
    p = hits / (jnp.sum(hits, axis=-1, keepdims=True) + 1e-12)
    return jnp.exp(-jnp.sum(p * jnp.log(p + 1e-12), axis=-1))


def usage_metrics(hits: Params, domains: tuple[str, ...]) -> Metrics:
    """Perplexity and share in use of the semantic codebook, and of the worst residual one."""
    semantic, residual = jnp.sum(hits["semantic"], axis=0), jnp.sum(hits["residual"], axis=0)
    in_use = {"semantic": semantic > USED, "residual": residual > USED}
    per_domain = perplexity(hits["semantic"])
    return {
        "semantic_perplexity": perplexity(semantic),
        "semantic_used": jnp.mean(in_use["semantic"], dtype=jnp.float32),
        "residual_perplexity": jnp.min(perplexity(residual)),
        "residual_used": jnp.min(jnp.mean(in_use["residual"], axis=-1, dtype=jnp.float32)),
        **{f"semantic_perplexity_{name}": per_domain[i] for i, name in enumerate(domains)},
    }
