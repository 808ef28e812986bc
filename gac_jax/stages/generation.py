"""Stage 2, generation: train the flow decoder on the frozen encoder's codes (Eq. 10).

X_1 is the companded, per-bin normalised MDCT of the audio. The network predicts X_1; the loss
is |v_theta(X_t, t, Z) - (X_1 - X_0)|^2, weighted per bin by auditory density.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from gac_jax import flow
from gac_jax.models.encoder import EncoderConfig, Features
from gac_jax.models.flow_decoder import DecoderConfig, FlowDecoder
from gac_jax.models.quantizer import Quantizer, QuantizerConfig, masked_mean
from gac_jax.rates import MDCT_PER_FRAME, SAMPLE_RATE
from gac_jax.signal.mdct import compand, mdct
from gac_jax.stages.task import Batch, Metrics, Params
from gac_jax.stages.understanding import frames_of, sample_rate_index

TIME_BUCKETS = 4  # the loss is logged for each quarter of t


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """Objective of stage 2.

    Attributes:
      rate_weights: probability of each rate of the ladder (0, 1, 2, 4, 8 residual codebooks).
      drop_codes: probability of the null condition, for classifier-free guidance.
      time_mean: mean of logit t.
      time_std: standard deviation of logit t.
      companding: exponent of sign(c)|c|^e.
      auditory_weight: 0 weighs all bins alike, 1 by equivalent rectangular bandwidths per hertz.
      scale_steps: steps over which the per-bin deviation is measured, then kept.
    """

    rate_weights: tuple[float, ...]
    drop_codes: float
    time_mean: float
    time_std: float
    companding: float
    auditory_weight: float
    scale_steps: int


class Generation:
    """The flow decoder, given a frozen encoder and quantiser."""

    name = "generation"

    def __init__(
        self,
        config: GenerationConfig,
        encoder: EncoderConfig,
        quantizer: QuantizerConfig,
        decoder: DecoderConfig,
    ) -> None:
        """Builds the modules."""
        self.config = config
        self.features = Features(encoder)
        self.quantizer = Quantizer(quantizer)
        self.decoder = FlowDecoder(decoder)
        self.bin_weights = auditory_weights(decoder.bins, config.auditory_weight)

    def init(self, key: jax.Array) -> Params:
        """Parameters {"decoder"}."""
        return {"decoder": init_decoder(self.decoder, self.quantizer.config.width, key)}

    def init_memory(self, params: Params) -> Params:
        """Running power of each companded bin and the number of batches in it."""
        del params
        return {
            "power": jnp.ones((self.decoder.config.bins,)),
            "batches": jnp.zeros((), jnp.int32),
        }

    def loss(
        self, params: Params, frozen: Params, memory: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Params]]:
        """Eq. 10 on one batch; `frozen` holds {"encoder", "quantizer"}."""
        keys = jax.random.split(key, 4)
        frames = frames_of(batch)
        rate = sample_rate_index(keys[0], self.config.rate_weights, frames.shape[0])
        embedding = self._embed(frozen, batch, frames, rate)
        spectrum = compand(mdct(batch["wave"], frames * MDCT_PER_FRAME), self.config.companding)
        memory = self._measure_scale(memory, spectrum, frames)
        x1 = spectrum / bin_scale(memory)[None, None]
        t = flow.sample_time(keys[1], frames.shape, self.config.time_mean, self.config.time_std)
        x_t = flow.interpolate(jax.random.normal(keys[2], x1.shape), x1, t)
        keep = jax.random.uniform(keys[3], frames.shape) >= self.config.drop_codes
        x1_hat = predict(self.decoder, params["decoder"], x_t, t, embedding, rate, keep, frames)
        error = flow.loss_per_element(x1_hat, x1, t) * self.bin_weights[None, None]
        per_frame, valid = jnp.mean(error, axis=-1), _valid(x1, frames)
        metrics = time_bucket_losses(per_frame, valid, t)
        return masked_mean(per_frame, valid), (metrics, memory)

    def refresh(self, params: Params, memory: Params) -> Params:
        """Nothing follows the memory."""
        del memory
        return params

    def evaluate(
        self, params: Params, frozen: Params, memory: Params, batch: Batch, key: jax.Array
    ) -> Metrics:
        """Loss and its parts."""
        loss, (metrics, _) = self.loss(params, frozen, memory, batch, key)
        return {"loss": loss, **metrics}

    def _embed(self, frozen: Params, batch: Batch, frames: jax.Array, rate: jax.Array) -> jax.Array:
        quantizer = {"params": frozen["quantizer"]}
        with jax.default_matmul_precision("float32"):  # the codes that a sender would send
            semantic, acoustic = self.features.apply(
                {"params": frozen["encoder"]}, batch["wave"], frames
            )
            codes = self.quantizer.apply(quantizer, semantic, acoustic, frames, method="codes")
        return jax.lax.stop_gradient(self.quantizer.apply(quantizer, codes, rate, method="embed"))

    def _measure_scale(self, memory: Params, spectrum: jax.Array, frames: jax.Array) -> Params:
        """Averages the power of each bin over the first `scale_steps` batches."""
        seen = memory["batches"]
        power = masked_mean(jnp.square(spectrum), _valid(spectrum, frames))
        mean = memory["power"] + (power - memory["power"]) / (seen + 1).astype(jnp.float32)
        measuring = seen < self.config.scale_steps
        return {
            "power": jnp.where(measuring, mean, memory["power"]),
            "batches": seen + measuring.astype(jnp.int32),
        }


def init_decoder(decoder: FlowDecoder, embedding_width: int, key: jax.Array) -> Params:
    """Fresh parameters of a flow decoder for code embeddings of the given width."""
    codes, row = 2, jnp.ones((1,), jnp.int32)
    x = jnp.zeros((1, codes * decoder.config.frames_per_code, decoder.config.bins))
    embedding = jnp.zeros((1, codes, embedding_width))

    def everything(module: FlowDecoder) -> jax.Array:
        condition = module.condition(embedding, row, row > 0, codes * row)
        return module(x, jnp.zeros((1,)), condition, codes * row)

    return decoder.init(key, method=everything)["params"]


def predict(
    decoder: FlowDecoder,
    params: Params,
    x_t: jax.Array,
    t: jax.Array,
    embedding: jax.Array,
    rate: jax.Array,
    keep: jax.Array,
    frames: jax.Array,
) -> jax.Array:
    """X_1 predicted in one call; shapes as in `FlowDecoder`."""

    def both(module: FlowDecoder) -> jax.Array:
        return module(x_t, t, module.condition(embedding, rate, keep, frames), frames)

    return decoder.apply({"params": params}, method=both)


def bin_scale(memory: Params) -> jax.Array:
    """Deviation of each companded bin, (F,) float32; the floor spares bins that are empty."""
    return jnp.sqrt(memory["power"]) + 1e-3


def auditory_weights(bins: int, strength: float) -> jax.Array:
    """Loss weight of each MDCT bin, mean 1: (auditory filters per hertz) ** strength.

    The density of auditory filters is 1 / ERB(f) with ERB(f) = 24.7 (1 + 4.37 f / kHz)
    (Glasberg and Moore, 1990). Half of the bins lie above 8 kHz, where the ear resolves little.
    """
    kilohertz = (jnp.arange(bins, dtype=jnp.float32) + 0.5) / bins * SAMPLE_RATE / 2000.0
    weights = (1.0 + 4.37 * kilohertz) ** -strength
    return weights / jnp.mean(weights)


def time_bucket_losses(per_frame: jax.Array, valid: jax.Array, t: jax.Array) -> Metrics:
    """Mean loss in each quarter of t; NaN where a batch has no t in it."""
    bucket = jnp.minimum((t * TIME_BUCKETS).astype(jnp.int32), TIME_BUCKETS - 1)

    def mean(i: int) -> jax.Array:
        chosen = (valid & (bucket == i)[:, None]).astype(jnp.float32)
        count = jnp.sum(chosen)
        return jnp.sum(per_frame * chosen) / jnp.where(count > 0, count, jnp.nan)

    return {f"loss_t{i}": mean(i) for i in range(TIME_BUCKETS)}


def _valid(spectrum: jax.Array, frames: jax.Array) -> jax.Array:
    return jnp.arange(spectrum.shape[1])[None] < frames[:, None] * MDCT_PER_FRAME
