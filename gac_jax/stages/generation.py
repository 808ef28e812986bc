"""Stage 2, generation: train the flow decoder on the frozen encoder's codes (Eq. 10).

X_1 is the companded MDCT of the audio over its envelope, the deviation s(Z) that the codes imply.
The network predicts X_1 and s; the loss is

    |v_theta(X_t, t, Z) - (X_1 - X_0)|^2 w + c^2 / (2 s^2) + log s

with companded coefficients c. The second part is the negative log likelihood of c under N(0, s^2).
The weight w follows auditory density and the envelope.
"""

from __future__ import annotations

import dataclasses
import functools

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
LONGEST_SPAN = 5  # code frames lost in a row
SPAN_RATE = 0.075  # of the frames at which a span starts; spans overlap, and a fifth is lost


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
      envelope_weight: 0 weighs loud and soft coefficients alike, 2 by their power.
      lose_frames: probability that a crop loses about a fifth of its code frames.
      scale_steps: steps over which the per-bin deviation is measured, then kept.
    """

    rate_weights: tuple[float, ...]
    drop_codes: float
    time_mean: float
    time_std: float
    companding: float
    auditory_weight: float
    envelope_weight: float
    lose_frames: float
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
        keys = jax.random.split(key, 5)
        frames = frames_of(batch)
        rate = sample_rate_index(keys[0], self.config.rate_weights, frames.shape[0])
        embedding = self._embed(frozen, batch, frames, rate)
        spectrum = compand(mdct(batch["wave"], frames * MDCT_PER_FRAME), self.config.companding)
        memory = self._measure_scale(memory, spectrum, frames)
        spectrum = spectrum / bin_scale(memory)[None, None]
        t = flow.sample_time(keys[1], frames.shape, self.config.time_mean, self.config.time_std)
        noise = jax.random.normal(keys[2], spectrum.shape)
        keep = jax.random.uniform(keys[3], frames.shape) >= self.config.drop_codes
        lost = lost_frames(keys[4], embedding.shape[:2], self.config.lose_frames)

        def predict(decoder: FlowDecoder) -> tuple[jax.Array, jax.Array, jax.Array]:
            condition = decoder.condition(embedding, rate, keep, lost, frames)
            x1 = spectrum * jnp.exp(-jax.lax.stop_gradient(condition.log_envelope))
            x_t = flow.interpolate(noise, x1, t)
            return condition.log_envelope, x1, decoder(x_t, t, condition, frames)

        variables = {"params": params["decoder"]}
        log_envelope, x1, x1_hat = self.decoder.apply(variables, method=predict)
        valid = _valid(x1, frames)
        weights = self.bin_weights[None, None] * self._loudness(log_envelope, valid)
        per_frame = jnp.mean(flow.loss_per_element(x1_hat, x1, t) * weights, axis=-1)
        surprise = 0.5 * jnp.square(spectrum) * jnp.exp(-2.0 * log_envelope) + log_envelope
        envelope = jnp.mean(masked_mean(surprise, valid) * self.bin_weights)
        flow_loss = masked_mean(per_frame, valid)
        parts = {"flow": flow_loss, "envelope": envelope}
        metrics = {**parts, **time_bucket_losses(per_frame, valid, t)}
        return flow_loss + envelope, (metrics, memory)

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
        codes = batch["codes"] if "codes" in batch else self._codes(frozen, batch, frames)
        return jax.lax.stop_gradient(self.quantizer.apply(quantizer, codes, rate, method="embed"))

    def _codes(self, frozen: Params, batch: Batch, frames: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("float32"):  # the codes that a sender would send
            semantic, acoustic = self.features.apply(
                {"params": frozen["encoder"]}, batch["wave"], frames
            )
            quantizer = {"params": frozen["quantizer"]}
            return self.quantizer.apply(quantizer, semantic, acoustic, frames, method="codes")

    def _loudness(self, log_envelope: jax.Array, valid: jax.Array) -> jax.Array:
        """Weight of each coefficient in Eq. 10, with mean 1 in each row."""
        strength = jnp.exp(self.config.envelope_weight * jax.lax.stop_gradient(log_envelope))
        strength = jnp.where(valid[..., None], strength, 0.0)
        share = jnp.mean(valid, axis=1)[:, None, None]
        return strength * share / (jnp.mean(strength, axis=(1, 2), keepdims=True) + 1e-9)

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
        lost = jnp.zeros((1, codes), bool)
        condition = module.condition(embedding, row, row > 0, lost, codes * row)
        return module(x, jnp.zeros((1,)), condition, codes * row)

    return decoder.init(key, method=everything)["params"]


def lost_frames(key: jax.Array, shape: tuple[int, ...], probability: float) -> jax.Array:
    """Draws the code frames (B, N) bool that rows lose: some rows, a fifth of their frames.

    Losses come in spans of 80 to 400 ms, as in a transmission with bursts.
    """
    keys = jax.random.split(key, 3)
    starts = jax.random.uniform(keys[0], shape) < SPAN_RATE
    length = jax.random.randint(keys[1], shape, 1, LONGEST_SPAN + 1)
    padded = jnp.pad(jnp.where(starts, length, 0), ((0, 0), (LONGEST_SPAN - 1, 0)))
    last = LONGEST_SPAN - 1
    reached = (padded[:, last - i : last - i + shape[1]] > i for i in range(LONGEST_SPAN))
    chosen = jax.random.uniform(keys[2], shape[:1]) < probability
    return functools.reduce(jnp.logical_or, reached) & chosen[:, None]


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
