"""Stage 2, generation: train the flow decoder on the frozen encoder's codes (Eq. 10).

Audio is a log-magnitude spectrum Y, standardised band by band. The network predicts the mean mu
and the deviation s that Y has given the codes Z, and X_1 = (Y - mu) / s by the flow; the loss is

    |v_theta(X_t, t, Z) - (X_1 - X_0)|^2 + (Y - mu)^2 / (2 s^2) + log s

The second part is the negative log likelihood of Y under N(mu, s^2): what is left to the flow is
how the numbers of a spectrum depend on each other.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from gac_jax import flow
from gac_jax.models.encoder import EncoderConfig, Features
from gac_jax.models.flow_decoder import Condition, DecoderConfig, FlowDecoder
from gac_jax.models.quantizer import Quantizer, QuantizerConfig, masked_mean
from gac_jax.rates import SPECTRA_PER_FRAME
from gac_jax.signal.log_spectrum import log_spectrum
from gac_jax.stages.task import Batch, Metrics, Params, Task
from gac_jax.stages.understanding import frames_of, sample_rate_index

BUCKETS = 4  # the loss is logged for each quarter of t
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
      lose_frames: probability that a crop loses about a fifth of its code frames.
      scale_steps: steps over which each band's mean and deviation are measured, then kept.
    """

    rate_weights: tuple[float, ...]
    drop_codes: float
    time_mean: float
    time_std: float
    lose_frames: float
    scale_steps: int


class Generation(Task):
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

    def init(self, key: jax.Array) -> Params:
        """Parameters {"decoder"}."""
        return {"decoder": init_decoder(self.decoder, self.quantizer.config.width, key)}

    def init_memory(self, params: Params) -> Params:
        """Mean and mean square of each number of a spectrum, and the batches in them."""
        del params
        bins = self.decoder.config.bins
        return {
            "mean": jnp.zeros((bins,)),
            "power": jnp.ones((bins,)),
            "batches": jnp.zeros((), jnp.int32),
        }

    def loss(
        self, params: Params, frozen: Params, memory: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Params]]:
        """Eq. 10 on one batch; `frozen` holds {"encoder", "quantizer"}."""
        keys = jax.random.split(key, 5)
        frames = frames_of(batch)
        rate = sample_rate_index(keys[0], self.config.rate_weights, frames.shape[0])
        embedding = self.embed(frozen, batch, frames, rate)
        level = log_spectrum(batch["wave"])
        valid = valid_spectra(level, frames)
        memory = self._measure_scale(memory, level, valid)
        mean, scale = band_statistics(memory)
        spectrum = (level - mean[None, None]) / scale[None, None]
        t = flow.sample_time(keys[1], frames.shape, self.config.time_mean, self.config.time_std)
        noise = jax.random.normal(keys[2], spectrum.shape)
        keep = jax.random.uniform(keys[3], frames.shape) >= self.config.drop_codes
        lost = lost_frames(keys[4], embedding.shape[:2], self.config.lose_frames)

        def predict(decoder: FlowDecoder) -> tuple[Condition, jax.Array, jax.Array]:
            condition = decoder.condition(embedding, rate, keep, lost, frames)
            x1 = jax.lax.stop_gradient(condition.standardise(spectrum))
            return condition, x1, decoder(flow.interpolate(noise, x1, t), t, condition, frames)

        variables = {"params": params["decoder"]}
        condition, x1, x1_hat = self.decoder.apply(variables, method=predict)
        per_frame = jnp.mean(flow.loss_per_element(x1_hat, x1, t), axis=-1)
        surprise = 0.5 * jnp.square(condition.standardise(spectrum)) + condition.log_deviation
        flow_loss = masked_mean(per_frame, valid)
        likelihood = masked_mean(jnp.mean(surprise, axis=-1), valid)
        parts = {"flow": flow_loss, "likelihood": likelihood}
        metrics = {**parts, **bucket_losses(per_frame, valid, t, "t")}
        return flow_loss + likelihood, (metrics, memory)

    def embed(self, frozen: Params, batch: Batch, frames: jax.Array, rate: jax.Array) -> jax.Array:
        """Codes of a batch, or those it brings, as what a decoder is told: (B, N, D)."""
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

    def _measure_scale(self, memory: Params, level: jax.Array, valid: jax.Array) -> Params:
        """Averages over the first `scale_steps` batches."""
        seen = memory["batches"]
        measuring = seen < self.config.scale_steps

        def averaged(before: jax.Array, value: jax.Array) -> jax.Array:
            new = before + (masked_mean(value, valid) - before) / (seen + 1).astype(jnp.float32)
            return jnp.where(measuring, new, before)

        return {
            "mean": averaged(memory["mean"], level),
            "power": averaged(memory["power"], jnp.square(level)),
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


def band_statistics(memory: Params) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation of each number of a spectrum over all audio, (F,) float32 each."""
    mean = memory["mean"]
    variance = memory["power"] - jnp.square(mean)
    return mean, jnp.sqrt(jnp.maximum(variance, 0.0)) + 1e-3  # spares bands that are always empty


def bucket_losses(per_frame: jax.Array, valid: jax.Array, at: jax.Array, name: str) -> Metrics:
    """Mean loss of the rows in each quarter of `at`, (B,) from 0 to 1; NaN where there are none."""
    bucket = jnp.minimum((at * BUCKETS).astype(jnp.int32), BUCKETS - 1)

    def mean(i: int) -> jax.Array:
        chosen = (valid & (bucket == i)[:, None]).astype(jnp.float32)
        count = jnp.sum(chosen)
        return jnp.sum(per_frame * chosen) / jnp.where(count > 0, count, jnp.nan)

    return {f"loss_{name}{i}": mean(i) for i in range(BUCKETS)}


def valid_spectra(spectrum: jax.Array, frames: jax.Array) -> jax.Array:
    """(B, T) bool: the spectra (B, T, F) that lie within a row's code frames (B,)."""
    return jnp.arange(spectrum.shape[1])[None] < frames[:, None] * SPECTRA_PER_FRAME
