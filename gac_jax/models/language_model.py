"""A language model with frozen weights that reads the codes: a decoder-only Transformer.

One network covers Llama (SmolLM2 too) and Qwen2: RMSNorm before each part, rotary positions,
grouped-query attention (Ainslie et al., 2023) and a SwiGLU MLP. It takes vectors, not only tokens,
so that audio features can stand where words stand.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gac_jax.models.layers import dense

Memory = tuple[jax.Array, jax.Array]  # keys and values, (B, T, num_kv_heads, C) in each layer


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig:
    """Size and variant of a language model.

    Attributes:
      vocab_size: tokens V.
      width: channels D of the residual stream.
      depth: Transformer blocks.
      num_heads: attention heads of queries.
      num_kv_heads: attention heads of keys and values, a divisor of num_heads.
      head_dim: channels C of one head; num_heads * head_dim need not be the width.
      mlp_width: hidden channels of the MLP.
      rope_theta: base of the rotary wavelengths.
      norm_eps: added to the mean square in RMSNorm.
      tied: whether the output matrix is the embedding.
      qkv_bias: whether queries, keys and values have a bias (Qwen2).
      rope_divisors: head_dim / 2 factors that slow down each rotary rate, as models stretched to
        long texts have them; empty for none.
      remat: recompute block activations in the backward pass.
      dtype: compute dtype of matmuls; norms and softmax run in float32.
    """

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    rope_theta: float
    norm_eps: float
    tied: bool
    qkv_bias: bool
    rope_divisors: tuple[float, ...] = ()
    remat: bool = False
    dtype: str = "float32"


class _Place(NamedTuple):
    """Where the slots of a call stand: the same in every block."""

    cos: jax.Array  # (B, T, 1, C / 2) float32, of the rotary angles
    sin: jax.Array
    seen: jax.Array  # (B, 1, T, S) bool, which of S keys each of T queries attends to
    slot: jax.Array  # () int32, where in memory the new keys go


class LanguageModel(nn.Module):
    """Tokens or vectors in, hidden states or logits out."""

    config: LanguageModelConfig

    def setup(self) -> None:
        """Builds the layers."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        block = nn.remat(Block, prevent_cse=False) if config.remat else Block
        self.embedding = self.param(
            "embedding", nn.initializers.normal(0.02), (config.vocab_size, config.width)
        )
        self.blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=config.depth,
        )(config)
        self.norm = RMSNorm(config.norm_eps)
        if not config.tied:
            self.head = nn.Dense(
                config.vocab_size, use_bias=False, dtype=dtype, dot_general=_float32_product
            )

    def __call__(self, tokens: jax.Array, valid: jax.Array) -> jax.Array:
        """Scores the token after each slot.

        Args:
          tokens: (B, T) int32.
          valid: (B, T) bool, see `hidden`.

        Returns:
          (B, T, V) float32 logits.
        """
        return self.logits(self.hidden(self.embed(tokens), valid))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Maps tokens (B, T) int32 to their vectors (B, T, D)."""
        return jnp.take(self.embedding, tokens, axis=0).astype(self.config.dtype)

    def hidden(self, inputs: jax.Array, valid: jax.Array) -> jax.Array:
        """Runs the blocks, each slot seeing the valid ones up to itself.

        Args:
          inputs: (B, T, D), from `embed` or of the same scale.
          valid: (B, T) bool. False slots may stand anywhere: they are not seen, and positions
            count valid slots only, so the others come out as if they were not there.

        Returns:
          (B, T, D) after the last norm; slots that are not valid carry no meaning.
        """
        return self.prefill(inputs, valid)[0]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Maps hidden states (..., D) to float32 logits (..., V)."""
        if not self.config.tied:
            return self.head(hidden)
        return _float32_product(hidden, self.embedding.astype(hidden.dtype).T)

    def prefill(self, inputs: jax.Array, valid: jax.Array) -> tuple[jax.Array, Memory]:
        """As `hidden`, and the keys and values of every layer for `extend`.

        Args:
          inputs: (B, T, D).
          valid: (B, T) bool.

        Returns:
          Hidden states (B, T, D), and keys and values, each (depth, B, T, num_kv_heads, C).
        """
        seen = jnp.tri(inputs.shape[1], dtype=bool)[None] & valid[:, None]
        place = self._place(jnp.cumsum(valid, axis=1) - 1, seen, 0)
        # Whatever stands in a slot that is not valid, even NaN, would reach others times zero.
        inputs = jnp.where(valid[..., None], inputs, jnp.zeros_like(inputs))
        x, memory = self.blocks(inputs.astype(self.config.dtype), None, place)
        return self.norm(x), memory

    def extend(
        self, inputs: jax.Array, memory: Memory, slot: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, Memory]:
        """One more slot after those in memory.

        Args:
          inputs: (B, 1, D), a valid slot of every row.
          memory: keys and values, each (depth, B, S, num_kv_heads, C).
          slot: () int32, where in memory the new slot goes.
          valid: (B, S) bool, the valid slots of memory; those after `slot` do not count.

        Returns:
          Hidden state (B, 1, D), and memory with the new slot written.
        """
        seen = valid & (jnp.arange(valid.shape[1]) <= slot)[None]
        position = jnp.sum(seen, axis=1, keepdims=True) - 1
        place = self._place(position, seen[:, None], slot)
        x, new = self.blocks(inputs.astype(self.config.dtype), memory, place)
        return self.norm(x), jax.tree.map(partial(_write, slot=slot, axis=2), memory, new)

    def _place(self, positions: jax.Array, seen: jax.Array, slot: jax.Array | int) -> _Place:
        half = self.config.head_dim // 2
        rates = self.config.rope_theta ** -(np.arange(half, dtype=np.float64) / half)
        if self.config.rope_divisors:
            rates = rates / np.asarray(self.config.rope_divisors)
        angles = positions.astype(jnp.float32)[..., None, None]
        angles = angles * jnp.asarray(rates, jnp.float32)[None, None, None]
        return _Place(jnp.cos(angles), jnp.sin(angles), seen[:, None], jnp.asarray(slot))


class Block(nn.Module):
    """Causal self-attention and a gated MLP, each on a residual path."""

    config: LanguageModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, memory: Memory | None, place: _Place
    ) -> tuple[jax.Array, Memory]:
        """Maps x (B, T, D) to (B, T, D); also returns the keys and values of its T slots."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        mixed, new = self._attention(
            RMSNorm(config.norm_eps, name="attention_norm")(x), memory, place
        )
        x = x + mixed
        h = RMSNorm(config.norm_eps, name="mlp_norm")(x)
        gate = dense(config.mlp_width, use_bias=False, dtype=dtype, name="gate")(h)
        h = nn.silu(gate) * dense(config.mlp_width, use_bias=False, dtype=dtype, name="mlp_in")(h)
        return x + dense(config.width, use_bias=False, dtype=dtype, name="mlp_out")(h), new

    def _attention(
        self, x: jax.Array, memory: Memory | None, place: _Place
    ) -> tuple[jax.Array, Memory]:
        config, dtype = self.config, jnp.dtype(self.config.dtype)

        def project(heads: int, name: str) -> jax.Array:
            size = heads * config.head_dim
            flat = dense(size, use_bias=config.qkv_bias, dtype=dtype, name=name)(x)
            return flat.reshape(*x.shape[:2], heads, config.head_dim)

        query = _rotate(project(config.num_heads, "query"), place)
        key = _rotate(project(config.num_kv_heads, "key"), place)
        new = (key, project(config.num_kv_heads, "value"))
        keys, values = new
        if memory is not None:
            keys, values = jax.tree.map(partial(_write, slot=place.slot, axis=1), memory, new)
        mixed = jax.nn.dot_product_attention(query, keys, values, mask=place.seen)
        out = dense(config.width, use_bias=False, dtype=dtype, name="out")
        return out(mixed.reshape(*x.shape[:2], -1)), new


class RMSNorm(nn.Module):
    """Scales vectors to a mean square of one, then each channel (Zhang and Sennrich, 2019)."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, T, D) to the same shape and dtype; computes in float32."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],)).astype(jnp.float32)
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + self.epsilon)
        return (h * scale[None, None]).astype(x.dtype)


@partial(jax.jit, static_argnames=("model", "max_tokens", "stop_tokens"))
def generate(
    model: LanguageModel,
    params: Any,
    inputs: jax.Array,
    valid: jax.Array,
    max_tokens: int,
    stop_tokens: tuple[int, ...],
) -> jax.Array:
    """Continues each row with its most likely tokens, one at a time.

    Args:
      model: the network.
      params: its parameters.
      inputs: (B, T, D) prompt, from `LanguageModel.embed` or of the same scale.
      valid: (B, T) bool, slots of the prompt that count; at least one in each row.
      max_tokens: most tokens to add, at least 1.
      stop_tokens: a row ends after the first of these that it takes.

    Returns:
      (B, max_tokens) int32; stop_tokens[0] after the end of a row.
    """
    run = partial(model.apply, {"params": params})
    last = inputs.shape[1] - 1 - jnp.argmax(valid[:, ::-1], axis=1)
    fill = jnp.int32(stop_tokens[0] if stop_tokens else 0)
    hidden, memory = run(inputs, valid, method="prefill")
    # The last token is never looked back at, so it needs no slot.
    memory = jax.tree.map(partial(_lengthen, axis=2, by=max_tokens - 1), memory)
    valid = _lengthen(valid, axis=1, by=max_tokens - 1)

    def choose(hidden: jax.Array, ended: jax.Array) -> tuple[jax.Array, jax.Array]:
        best = jnp.argmax(run(hidden, method="logits"), axis=-1).astype(jnp.int32)
        token = jnp.where(ended, fill, best)
        # A row that has ended takes a stop token again, and so stays ended.
        return token, jnp.isin(token, jnp.asarray(stop_tokens, jnp.int32))

    def going(state: tuple) -> jax.Array:
        step, _, _, ended, _ = state
        return (step < max_tokens) & ~jnp.all(ended)

    def advance(state: tuple) -> tuple:
        step, token, tokens, ended, memory = state
        slot = inputs.shape[1] + step - 1
        word = run(token[:, None], method="embed")
        hidden, memory = run(word, memory, slot, valid, method="extend")
        token, ended = choose(hidden[:, 0], ended)
        return step + 1, token, _write(tokens, token[:, None], step, axis=1), ended, memory

    first = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    token, ended = choose(first, jnp.zeros(first.shape[:1], bool))
    tokens = jnp.full((first.shape[0], max_tokens), fill).at[:, 0].set(token)
    return jax.lax.while_loop(going, advance, (jnp.int32(1), token, tokens, ended, memory))[2]


def _rotate(x: jax.Array, place: _Place) -> jax.Array:
    """Rotates heads (B, T, H, C) by their position (RoPE, rotate-half layout)."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [a * place.cos - b * place.sin, a * place.sin + b * place.cos]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def _write(old: jax.Array, new: jax.Array, slot: jax.Array, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis)


def _lengthen(x: jax.Array, axis: int, by: int) -> jax.Array:
    """Appends zeros to memory, and True to `valid`."""
    widths = [(0, by if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=x.dtype == bool)


def _float32_product(
    x: jax.Array, kernel: jax.Array, dimensions: object = None, **kwargs: object
) -> jax.Array:
    """As `layers.dense` multiplies, but the sums are not rounded to x's dtype."""
    del dimensions, kwargs
    flat = x.reshape(-1, x.shape[-1])
    product = jax.lax.dot(flat, kernel, preferred_element_type=jnp.float32)
    return product.reshape(*x.shape[:-1], kernel.shape[-1])
