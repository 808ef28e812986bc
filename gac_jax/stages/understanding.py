"""Stage 1, understanding: train encoder and quantiser under an information bottleneck (Eq. 9).

    L = sum of weight[name] * term[name] over the terms
      mel         log-mel L1 of what the codes of a random rate can reconstruct
      feature     share of the encoder feature's variance that the semantic code leaves unexplained
      codes       codebook and commitment losses
      info        L_info = KL(p-bar || U) = log K - H(p-bar) in nats, mean over codebooks;
                  p-bar is the global batch's mean soft assignment with a running memory
      confidence  mean of log K - H(p(z|x)), the literal per-sample term (signed weight)

For hard codes the literal KL(Q(Z|X) || U) is the constant log K, so `info` is its marginal
form. The -log P(Y|Z) term of Eq. 9 is one more entry of this sum.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from gac_jax.models.encoder import POOL, EncoderConfig, Features, normalised_log_mel
from gac_jax.models.heads import FeatureHead, MelHead
from gac_jax.models.quantizer import Quantized, Quantizer, QuantizerConfig, masked_mean
from gac_jax.rates import FRAME_SAMPLES, LADDER
from gac_jax.stages.task import Batch, Metrics, Params

TERMS = ("mel", "feature", "codes", "info", "confidence")


@dataclasses.dataclass(frozen=True)
class UnderstandingConfig:
    """Objective of stage 1.

    Attributes:
      weights: weight of every term in TERMS; a term of weight 0 is left out.
      rate_weights: probability of each rate of the ladder (0, 1, 2, 4, 8 residual codebooks).
      usage_decay: memory of p-bar, per step.
      train_semantic_tower: False keeps pretrained Whisper weights as they are.
    """

    weights: tuple[tuple[str, float], ...]
    rate_weights: tuple[float, ...]
    usage_decay: float
    train_semantic_tower: bool


class Understanding:
    """Encoder and quantiser, with heads that are dropped after training."""

    name = "understanding"

    def __init__(
        self, config: UnderstandingConfig, encoder: EncoderConfig, quantizer: QuantizerConfig
    ) -> None:
        """Builds the modules; `config.weights` must name known terms."""
        unknown = {name for name, _ in config.weights} - set(TERMS)
        if unknown:
            raise ValueError(f"unknown loss terms {sorted(unknown)}; known are {TERMS}")
        self.config, self.encoder_config = config, encoder
        self.features = Features(encoder)
        self.quantizer = Quantizer(quantizer)
        self.mel_head = MelHead(encoder.acoustic_mels)
        self.feature_head = FeatureHead(POOL * encoder.width)

    def init(self, key: jax.Array) -> Params:
        """Parameters {"encoder", "quantizer", "mel_head", "feature_head"}."""
        keys = jax.random.split(key, 4)
        wave, frames = jnp.zeros((1, 2 * FRAME_SAMPLES)), jnp.full((1,), 2, jnp.int32)
        encoder = self.features.init(keys[0], wave, frames)
        semantic, acoustic = self.features.apply(encoder, wave, frames)
        quantizer = self.quantizer.init(keys[1], semantic, acoustic, frames, frames)
        quantized = self.quantizer.apply(quantizer, semantic, acoustic, frames, frames)
        valid = jnp.ones((1, 2 * POOL), bool)
        return {
            "encoder": encoder["params"],
            "quantizer": quantizer["params"],
            "mel_head": self.mel_head.init(keys[2], quantized.semantic, valid)["params"],
            "feature_head": self.feature_head.init(keys[3], quantized.semantic)["params"],
        }

    def init_memory(self) -> Params:
        """Running soft usage (starts uniform) and hard usage (starts empty) of each codebook."""
        config = self.quantizer.config
        residual = (config.num_residual, config.residual_size)
        return {
            "semantic": jnp.ones((config.semantic_size,)) / config.semantic_size,
            "residual": jnp.ones(residual) / config.residual_size,
            "semantic_hits": jnp.zeros((config.semantic_size,)),
            "residual_hits": jnp.zeros(residual),
        }

    def loss(
        self, params: Params, frozen: Params, memory: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Params]]:
        """Weighted sum of the terms in the module's docstring."""
        del frozen
        frames = frames_of(batch)
        semantic, acoustic = self._features(params["encoder"], batch["wave"], frames)
        rate = sample_rate_index(key, self.config.rate_weights, frames.shape[0])
        quantized = self.quantizer.apply(
            {"params": params["quantizer"]}, semantic, acoustic, frames, rate
        )
        usage, memory = self._update_usage(memory, quantized, frames)
        terms = {
            "mel": lambda: self._mel_error(params, quantized.embedding, batch, frames),
            "feature": lambda: self._feature_error(params, quantized, semantic, frames),
            "codes": lambda: quantized.loss,
            "info": lambda: sum(jnp.mean(information(p)) for p in usage.values()),
            "confidence": lambda: quantized.confidence,
        }
        values = {name: terms[name]() for name, weight in self.config.weights if weight}
        total = sum((weight * values[name] for name, weight in self.config.weights if weight), 0.0)
        return jnp.asarray(total), ({**values, **usage_metrics(memory)}, memory)

    def _features(
        self, params: Params, wave: jax.Array, frames: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        if not self.config.train_semantic_tower:
            params = {**params, "semantic": jax.lax.stop_gradient(params["semantic"])}
        return self.features.apply({"params": params}, wave, frames)

    def _mel_error(
        self, params: Params, embedding: jax.Array, batch: Batch, frames: jax.Array
    ) -> jax.Array:
        target = normalised_log_mel(batch["wave"], self.encoder_config.acoustic_mels)
        valid = jnp.arange(target.shape[1])[None] < frames[:, None] * POOL
        mel = self.mel_head.apply({"params": params["mel_head"]}, embedding, valid)
        return jnp.mean(masked_mean(jnp.abs(mel - target), valid))

    def _feature_error(
        self, params: Params, quantized: Quantized, semantic: jax.Array, frames: jax.Array
    ) -> jax.Array:
        guess = self.feature_head.apply({"params": params["feature_head"]}, quantized.semantic)
        valid = jnp.arange(guess.shape[1])[None] < frames[:, None]
        error = jnp.square(guess - standardise(jax.lax.stop_gradient(semantic), valid))
        return jnp.mean(masked_mean(error, valid))

    def _update_usage(
        self, memory: Params, quantized: Quantized, frames: jax.Array
    ) -> tuple[Params, Params]:
        """Mixes the batch's usage into the memory; gradients see the batch's part alone."""
        keep = self.config.usage_decay
        now = {"semantic": quantized.semantic_usage, "residual": quantized.residual_usage}
        usage = {k: p + keep * jax.lax.stop_gradient(memory[k] - p) for k, p in now.items()}
        hits = {
            k: keep * memory[k] + (1.0 - keep) * v
            for k, v in hard_usage(quantized.codes, frames, self.quantizer.config).items()
        }
        return usage, jax.lax.stop_gradient({**usage, **hits})


def standardise(features: jax.Array, valid: jax.Array) -> jax.Array:
    """Zero mean and unit variance of each channel (B, N, D) over the batch's valid (B, N) frames.

    Whisper's features have a few channels that are large everywhere and say nothing.
    """
    centred = features - masked_mean(features, valid)[None, None]
    return centred * jax.lax.rsqrt(masked_mean(jnp.square(centred), valid) + 1e-6)[None, None]


def frames_of(batch: Batch) -> jax.Array:
    """Valid code frames (B,) int32 of a batch."""
    return (batch["num_samples"] + FRAME_SAMPLES - 1) // FRAME_SAMPLES


def sample_rate_index(key: jax.Array, weights: tuple[float, ...], batch: int) -> jax.Array:
    """Draws the residual codebooks k in use, (B,) int32, from the report's ladder."""
    ladder = jnp.asarray(LADDER, jnp.int32)
    choice = jax.random.categorical(key, jnp.log(jnp.asarray(weights)), shape=(batch,))
    return ladder[choice]


def information(p: jax.Array) -> jax.Array:
    """KL(p || U) = log K - H(p) in nats over the last axis."""
    return jnp.log(float(p.shape[-1])) + jnp.sum(p * jnp.log(p + 1e-12), axis=-1)


def hard_usage(codes: jax.Array, frames: jax.Array, config: QuantizerConfig) -> Params:
    """Share of each code among the valid frames: {"semantic_hits", "residual_hits"}."""
    valid = (jnp.arange(codes.shape[2])[None] < frames[:, None]).astype(jnp.float32)
    share = valid / jnp.maximum(jnp.sum(valid), 1.0)

    def histogram(row: jax.Array, size: int) -> jax.Array:
        return jnp.zeros((size,)).at[row.ravel()].add(share.ravel())

    residual = jax.vmap(lambda row: histogram(row, config.residual_size), in_axes=1)
    return {
        "semantic_hits": histogram(codes[:, 0], config.semantic_size),
        "residual_hits": residual(codes[:, 1:]),
    }


def usage_metrics(memory: Params) -> Metrics:
    """Perplexity of the recent hard codes: semantic, and mean over the residual codebooks."""

    def perplexity(hits: jax.Array) -> jax.Array:
        p = hits / (jnp.sum(hits, axis=-1, keepdims=True) + 1e-12)
        return jnp.exp(-jnp.sum(p * jnp.log(p + 1e-12), axis=-1))

    return {
        "semantic_perplexity": perplexity(memory["semantic_hits"]),
        "residual_perplexity": jnp.mean(perplexity(memory["residual_hits"])),
    }
