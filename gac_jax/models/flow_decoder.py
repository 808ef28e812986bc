"""The flow decoder: a DiT that predicts clean spectra from noisy ones and the codes.

A diffusion Transformer (Peebles and Xie, 2023) over MDCT frames at 50 Hz. The codes enter at
12.5 Hz, so all that depends on them (condition network, adaLN modulation) runs at 12.5 Hz and
is broadcast over the four MDCT frames of a code frame.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from gac_jax.models.layers import ConvNeXtBlock, attend, dense, normalise, rotary, sinusoids

TIME_CHANNELS = 256
TIME_SCALE = 1000.0  # t in [0, 1] is stretched so that the fastest sinusoids resolve it


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Size of a flow decoder; every preset is this rule with its own width and depth.

    Attributes:
      width: channels D of the residual stream, a multiple of head_dim.
      depth: number of Transformer blocks.
      head_dim: channels of one attention head.
      condition_blocks: ConvNeXt blocks over the 12.5 Hz code embeddings.
      bins: MDCT coefficients in one frame.
      frames_per_code: MDCT frames in one code frame.
      num_rates: rates the decoder is told apart (0 .. 8 residual codebooks).
      remat: recompute block activations in the backward pass, trading time for memory.
      dtype: compute dtype of matmuls; parameters, norms and softmax stay in float32.
    """

    width: int
    depth: int
    head_dim: int = 64
    condition_blocks: int = 2
    bins: int = 640
    frames_per_code: int = 4
    num_rates: int = 9
    remat: bool = False
    dtype: str = "float32"


class ConditionNet(nn.Module):
    """Code embeddings and rate to one condition vector per code frame."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, embedding: jax.Array, rate: jax.Array, keep: jax.Array, valid: jax.Array
    ) -> jax.Array:
        """Returns (B, N, D); see `FlowDecoder.condition`."""
        width, dtype = self.config.width, jnp.dtype(self.config.dtype)
        x = dense(width, dtype=dtype, name="input")(embedding)
        x = x + nn.Embed(self.config.num_rates, width, dtype=dtype, name="rate")(rate)[:, None]
        null = self.param("null", nn.initializers.normal(0.02), (width,)).astype(dtype)
        x = jnp.where(keep[:, None, None], x, null[None, None])
        for i in range(self.config.condition_blocks):
            x = ConvNeXtBlock(dtype=dtype, name=f"block_{i}")(x, valid)
        return x


class Block(nn.Module):
    """Transformer block with adaLN-zero modulation, one modulation per code frame."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, signal: jax.Array, valid: jax.Array) -> tuple[jax.Array, None]:
        """Maps x (B, N, 4, D) given signal (B, N, D) and valid (B, 4 N)."""
        modulation = Modulation(6, self.config, name="modulation")(signal)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation
        x = x + gate_a * self._attention(normalise(x) * (1 + scale_a) + shift_a, valid)
        return x + gate_m * self._mlp(normalise(x) * (1 + scale_m) + shift_m), None

    def _attention(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.config.dtype)
        batch, frames, width = x.shape[0], x.shape[1] * x.shape[2], x.shape[3]
        flat = x.reshape(batch, frames, width)
        heads = (batch, frames, width // self.config.head_dim, self.config.head_dim)

        def project(name: str) -> jax.Array:
            return dense(width, dtype=dtype, name=name)(flat).reshape(heads)

        # QK-norm (Dehghani et al., 2023) keeps attention logits bounded at any scale.
        query = rotary(nn.RMSNorm(dtype=dtype, name="query_norm")(project("query")))
        key = rotary(nn.RMSNorm(dtype=dtype, name="key_norm")(project("key")))
        mixed = attend(query, key, project("value"), valid).reshape(x.shape)
        return dense(width, dtype=dtype, name="out")(mixed)

    def _mlp(self, x: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.config.dtype)
        h = nn.gelu(dense(4 * self.config.width, dtype=dtype, name="mlp_in")(x))
        return dense(self.config.width, dtype=dtype, name="mlp_out")(h)


class Modulation(nn.Module):
    """Zero-initialised affine map of SiLU(signal), split into `parts` of shape (B, N, 1, D)."""

    parts: int
    config: DecoderConfig

    @nn.compact
    def __call__(self, signal: jax.Array) -> list[jax.Array]:
        """Maps (B, N, D) to `parts` arrays of that size."""
        affine = dense(
            self.parts * self.config.width,
            kernel_init=nn.initializers.zeros,
            dtype=jnp.dtype(self.config.dtype),
            name="affine",
        )
        return jnp.split(affine(nn.silu(signal))[:, :, None], self.parts, axis=-1)


class FlowDecoder(nn.Module):
    """Predicts the clean companded MDCT X_1 from X_t, t and the codes."""

    config: DecoderConfig

    def setup(self) -> None:
        """Builds the layers."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        block = nn.remat(Block, prevent_cse=False) if config.remat else Block
        self.input = dense(config.width, dtype=dtype)
        self.time_in = dense(config.width, dtype=dtype)
        self.time_out = dense(config.width, dtype=dtype)
        self.condition_net = ConditionNet(config)
        self.subframe = self.param(
            "subframe", nn.initializers.normal(0.02), (config.frames_per_code, config.width)
        )
        self.blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=config.depth,
        )(config)
        self.final_modulation = Modulation(2, config)
        self.output = dense(config.bins, kernel_init=nn.initializers.zeros)

    def condition(
        self, embedding: jax.Array, rate: jax.Array, keep: jax.Array, num_frames: jax.Array
    ) -> jax.Array:
        """Everything that the codes decide, computed once per decode.

        Args:
          embedding: (B, N, C) from `Quantizer.embed`.
          rate: (B,) int32, number of residual codebooks in `embedding`, 0 .. 8.
          keep: (B,) bool; False replaces the codes by the learned null condition.
          num_frames: (B,) int32, valid code frames of each row.

        Returns:
          (B, N, D).
        """
        valid = jnp.arange(embedding.shape[1])[None] < num_frames[:, None]
        return self.condition_net(embedding, rate, keep, valid)

    def __call__(
        self, x_t: jax.Array, t: jax.Array, condition: jax.Array, num_frames: jax.Array
    ) -> jax.Array:
        """Predicts X_1.

        Args:
          x_t: (B, T, F) noisy spectra with T = 4 N.
          t: (B,) flow time, 0 is noise and 1 is audio.
          condition: (B, N, D) from `condition`.
          num_frames: (B,) int32, valid code frames of each row.

        Returns:
          (B, T, F) float32; frames beyond a row's length carry no meaning.
        """
        config = self.config
        batch, frames, _ = x_t.shape
        codes = frames // config.frames_per_code
        valid = jnp.arange(frames)[None] < num_frames[:, None] * config.frames_per_code
        time = self.time_out(nn.silu(self.time_in(sinusoids(t * TIME_SCALE, TIME_CHANNELS))))
        signal = condition + time[:, None]
        x = self.input(x_t).reshape(batch, codes, config.frames_per_code, config.width)
        x = x + condition[:, :, None] + self.subframe.astype(x.dtype)[None, None]
        x, _ = self.blocks(x, signal, valid)
        shift, scale = self.final_modulation(signal)
        x = normalise(x) * (1 + scale) + shift
        return self.output(x.reshape(batch, frames, config.width).astype(jnp.float32))
