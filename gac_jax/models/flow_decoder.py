"""The flow decoder: a DiT that predicts clean spectra from noisy ones and the codes.

A diffusion Transformer (Peebles and Xie, 2023) over spectra at 50 Hz. The codes enter at 12.5 Hz.
What modulates the blocks stays there and is broadcast over the four spectra of a code frame; what
tells these apart enters once, with the noisy spectrum.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gac_jax.models.layers import (
    ConvNeXtBlock,
    attend,
    by_rows,
    dense,
    normalise,
    rotary,
    sinusoids,
)
from gac_jax.models.neighbours import Neighbours

TIME_CHANNELS = 256
LOG_DEVIATION_RANGE = (-2.0, 1.0)  # of spectra whose deviation over all audio is 1
HALVES = 2  # spectra of half a frame each in the numbers of one, see `gac_jax.signal.log_spectrum`
TIME_SCALE = 1000.0  # t in [0, 1] is stretched so that the fastest sinusoids resolve it


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Size of a flow decoder; every preset is this rule with its own width and depth.

    Attributes:
      width: channels D of the residual stream, a multiple of head_dim.
      depth: number of Transformer blocks.
      head_dim: channels of one attention head.
      bins: numbers F in one spectrum.
      frames_per_code: spectra in one code frame.
      band_groups: groups of bands, each with a filter of its own in `Neighbours`.
      condition_depth: ConvNeXt blocks on the codes, and again on what is unfolded from them.
      num_rates: rates the decoder is told apart (0 .. 8 residual codebooks).
      interval: whether it knows mean velocities over intervals of t, for few network evaluations.
      remat: recompute block activations in the backward pass, trading time for memory.
      dtype: compute dtype of matmuls; parameters, norms and softmax stay in float32.
    """

    width: int
    depth: int
    head_dim: int = 64
    bins: int = 640
    frames_per_code: int = 4
    band_groups: int = 10
    condition_depth: int = 1
    num_rates: int = 9
    interval: bool = False
    remat: bool = False
    dtype: str = "float32"


class Condition(NamedTuple):
    """What the codes say, computed once per decode.

    Attributes:
      signal: (B, N, D) modulates every block, at 12.5 Hz.
      detail: (B, 4 N, D) enters together with the noisy spectrum, at 50 Hz.
      mean: (B, 4 N, F) float32, the spectrum to expect given the codes.
      log_deviation: (B, 4 N, F) float32, log of how far each of its numbers strays from that.
    """

    signal: jax.Array
    detail: jax.Array
    mean: jax.Array
    log_deviation: jax.Array

    def standardise(self, spectrum: jax.Array) -> jax.Array:
        """What the flow generates: how a spectrum (B, 4 N, F) strays, in deviations."""
        return (spectrum - self.mean) * jnp.exp(-self.log_deviation)

    def spectrum(self, standardised: jax.Array) -> jax.Array:
        """Inverts `standardise`."""
        return self.mean + jnp.exp(self.log_deviation) * standardised


class ConditionNet(nn.Module):
    """Code embeddings and rate to a `Condition`."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        embedding: jax.Array,
        rate: jax.Array,
        keep: jax.Array,
        lost: jax.Array,
        valid: jax.Array,
    ) -> Condition:
        """See `FlowDecoder.condition`; valid is (B, N)."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        width, spread = config.width, config.frames_per_code
        x = dense(width, dtype=dtype, name="input")(embedding)
        x = jnp.where(lost[:, :, None], self._vector("lost"), x)
        x = x + nn.Embed(config.num_rates, width, dtype=dtype, name="rate")(rate)[:, None]
        for i in range(config.condition_depth):
            x = ConvNeXtBlock(dtype=dtype, name=f"code_block_{i}")(x, valid)
        signal = x
        detail = dense(spread * width, dtype=dtype, name="unfold")(signal)
        detail = detail.reshape(x.shape[0], spread * x.shape[1], width)
        for i in range(config.condition_depth):
            block = ConvNeXtBlock(expansion=1, dtype=dtype, name=f"frame_block_{i}")
            detail = block(detail, jnp.repeat(valid, spread, axis=1))
        head = dense(2 * config.bins, kernel_init=nn.initializers.zeros, name="expected")
        expected = head(normalise(detail.astype(jnp.float32)))
        mean, log_deviation = jnp.split(expected, 2, axis=-1)
        # Not told the codes, the network still sees how a spectrum strays from what they imply:
        # guidance compares the two in one space.
        told = keep[:, None, None]
        return Condition(
            signal=jnp.where(told, signal, self._vector("null")),
            detail=jnp.where(told, detail, jnp.zeros_like(detail)),
            mean=mean,
            log_deviation=jnp.clip(log_deviation, *LOG_DEVIATION_RANGE),
        )

    def _vector(self, name: str) -> jax.Array:
        init = nn.initializers.normal(0.02)
        vector = self.param(name, init, (self.config.width,)).astype(self.config.dtype)
        return vector[None, None]


class Block(nn.Module):
    """Transformer block with adaLN-zero modulation, one modulation per code frame."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, signal: jax.Array, valid: jax.Array) -> tuple[jax.Array, None]:
        """Maps x (B, N, 4, D) given signal (B, N, D) and valid (B, 4 N)."""
        x, signal = by_rows(x), by_rows(signal)
        modulation = Modulation(6, self.config, name="modulation")(signal)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation
        x = x + gate_a * self._attention(normalise(x) * (1 + scale_a) + shift_a, valid)
        return by_rows(x + gate_m * self._mlp(normalise(x) * (1 + scale_m) + shift_m)), None

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
    """Predicts X_1, the clean spectrum less what the codes imply, from X_t, t and the codes."""

    config: DecoderConfig

    def setup(self) -> None:
        """Builds the layers."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        block = nn.remat(Block, prevent_cse=False) if config.remat else Block
        self.input = dense(config.width, dtype=dtype)
        self.time_in = dense(config.width, dtype=dtype)
        self.time_out = dense(config.width, dtype=dtype)
        if config.interval:
            self.interval_in = dense(config.width, dtype=dtype)
            # Zeros: at first, the velocity at t stands for the mean of any interval.
            zeros = nn.initializers.zeros
            self.interval_out = dense(config.width, kernel_init=zeros, dtype=dtype)
        self.condition_net = ConditionNet(config)
        self.blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=config.depth,
        )(config)
        self.final_modulation = Modulation(2, config)
        self.output = dense(config.bins, kernel_init=nn.initializers.zeros)
        self.neighbours = Neighbours(config.band_groups, HALVES)

    def condition(
        self,
        embedding: jax.Array,
        rate: jax.Array,
        keep: jax.Array,
        lost: jax.Array,
        num_frames: jax.Array,
    ) -> Condition:
        """Everything that the codes decide.

        Args:
          embedding: (B, N, C) from `Quantizer.embed`.
          rate: (B,) int32, number of residual codebooks in `embedding`, 0 .. 8.
          keep: (B,) bool; False is the null condition: only mean and deviation know the codes.
          lost: (B, N) bool, frames whose codes did not arrive and are to be guessed.
          num_frames: (B,) int32, valid code frames of each row.
        """
        valid = jnp.arange(embedding.shape[1])[None] < num_frames[:, None]
        return self.condition_net(embedding, rate, keep, lost, valid)

    def __call__(
        self,
        x_t: jax.Array,
        t: jax.Array,
        condition: Condition,
        num_frames: jax.Array,
        until: jax.Array | None = None,
    ) -> jax.Array:
        """Predicts X_1, or where the mean velocity from t to `until` would lead by t = 1.

        Args:
          x_t: (B, T, F) noisy spectra with T = 4 N.
          t: (B,) flow time, 0 is noise and 1 is audio.
          condition: from `condition`.
          num_frames: (B,) int32, valid code frames of each row.
          until: (B,) flow time, from t to 1; None is t itself. Without `config.interval` only that
            means anything.

        Returns:
          (B, T, F) float32; frames beyond a row's length carry no meaning.
        """
        config = self.config
        batch, frames, _ = x_t.shape
        codes = frames // config.frames_per_code
        valid = jnp.arange(frames)[None] < num_frames[:, None] * config.frames_per_code
        until = t if until is None else until
        signal = condition.signal + self._time(t, until)[:, None]
        skip, gain, size = wiener(t, until)
        x = self.input(x_t / size) + condition.detail
        x = x.reshape(batch, codes, config.frames_per_code, config.width)
        x, _ = self.blocks(x, signal, valid)
        shift, scale = self.final_modulation(signal)
        x = normalise(x) * (1 + scale) + shift
        x = x.reshape(batch, frames, config.width).astype(jnp.float32)
        nearby = self.neighbours(jnp.where(valid[:, :, None], x_t / size, 0.0), t)
        return skip * x_t + gain * (self.output(x) + nearby)

    def _time(self, t: jax.Array, until: jax.Array) -> jax.Array:
        """(B, D): what t and the interval up to `until` add to the codes."""

        def embedding(t: jax.Array) -> jax.Array:
            return sinusoids(t * TIME_SCALE, TIME_CHANNELS)

        time = self.time_out(nn.silu(self.time_in(embedding(t))))
        if not self.config.interval:
            return time
        return time + self.interval_out(nn.silu(self.interval_in(embedding(until - t))))


def wiener(t: jax.Array, until: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What is known of X_1 before anything is learnt, given that its variance is 1.

    X_1 given X_t = t X_1 + (1 - t) X_0 has the mean `skip` X_t, were it Gaussian, and the deviation
    `gain`; `size` is that of X_t. (Karras et al., 2022, with their scalings for these paths.)
    A network narrower than its spectra need not carry through itself what it cannot improve.
    The path of a Gaussian from t on is X_r = X_t size(r) / size(t), whose mean velocity up to
    `until` leads to `skip` X_t at t = 1, in general.

    Args:
      t: (B,) flow time.
      until: (B,) end of the interval, t for the velocity at t.

    Returns:
      skip, gain and size, each (B, 1, 1).
    """
    t, until = t[:, None, None], until[:, None, None]
    size, later = (jnp.sqrt(jnp.square(x) + jnp.square(1.0 - x)) for x in (t, until))
    slope = 2.0 * (t + until - 1.0) / ((size + later) * size)  # (later / size - 1) / (until - t)
    return 1.0 + (1.0 - t) * slope, (1.0 - t) / size, size
