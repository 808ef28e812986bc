"""Stage 1, understanding: train encoder and quantiser under an information bottleneck (Eq. 9).

    L = sum of weight[name] * term[name] over the terms
      text        -log P(Y|Z) of a frozen language model that reads the codes of a random rate,
                  in nats per token of the transcript or label Y (`gac_jax.stages.reading`)
      alignment   -log P(Y|Z) by placing the words of Y among the frames, in nats per token, where
                  only words of the batch are alternatives: shows encoder and adapter where to
                  begin, at a hundredth of the cost of text
      mel         log-mel L1 of what the codes of a random rate can reconstruct
      feature     share of the encoder feature's variance that the semantic code leaves unexplained
      codes       codebook and commitment losses
      info        L_info = KL(p-bar || U) = log K - H(p-bar) in nats, mean over codebooks;
                  p-bar is the global batch's mean soft assignment with a running memory
      confidence  mean of log K - H(p(z|x)), the literal per-sample term (signed weight)

For hard codes the literal KL(Q(Z|X) || U) is the constant log K, so `info` is its marginal
form. The report's own objective is text and info alone.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from gac_jax.models.encoder import POOL, EncoderConfig, Features, normalised_log_mel
from gac_jax.models.heads import FeatureHead, MelHead
from gac_jax.models.kmeans import centroids, start_means, update_means
from gac_jax.models.quantizer import Quantized, Quantizer, QuantizerConfig, masked_mean
from gac_jax.rates import FRAME_SAMPLES, LADDER
from gac_jax.stages.reading import Reader
from gac_jax.stages.task import Batch, Metrics, Params
from gac_jax.stages.usage import (
    information,
    start_hits,
    start_usage,
    update_hits,
    update_usage,
    usage_metrics,
)

TERMS = ("text", "alignment", "mel", "feature", "codes", "info", "confidence")

READ = ("text", "alignment")  # terms that need a reader


@dataclasses.dataclass(frozen=True)
class UnderstandingConfig:
    """Objective of stage 1.

    Attributes:
      weights: weight of every term in TERMS; a term of weight 0 is left out.
      rate_weights: probability of each rate of the ladder (0, 1, 2, 4, 8 residual codebooks).
      warmup_steps: steps at the start in which features pass unquantised.
      text_after: steps at the start in which the language model is not asked, so that words find
        their places first.
      usage_decay: memory of p-bar, per step.
      hits_decay: memory of the codes in use that metrics tell of, per step.
      codebook_decay: memory of the residual codebooks, per step.
      train_semantic_tower: False keeps pretrained Whisper weights as they are.
      domains: names of the values of a batch's `domain`.
    """

    weights: tuple[tuple[str, float], ...]
    rate_weights: tuple[float, ...]
    warmup_steps: int
    text_after: int
    usage_decay: float
    hits_decay: float
    codebook_decay: float
    train_semantic_tower: bool
    domains: tuple[str, ...]


class Understanding:
    """Encoder and quantiser, with heads that are dropped after training."""

    name = "understanding"

    def __init__(
        self,
        config: UnderstandingConfig,
        encoder: EncoderConfig,
        quantizer: QuantizerConfig,
        reader: Reader | None = None,
    ) -> None:
        """Builds the modules; `config.weights` must name known terms.

        Without a reader, the terms `text` and `alignment` are left out.
        """
        unknown = {name for name, _ in config.weights} - set(TERMS)
        if unknown:
            raise ValueError(f"unknown loss terms {sorted(unknown)}; known are {TERMS}")
        self.config, self.encoder_config = config, encoder
        given = ((name, weight) for name, weight in config.weights if weight)
        self.weights = {name: weight for name, weight in given if reader or name not in READ}
        self.features = Features(encoder)
        self.quantizer = Quantizer(quantizer)
        self.mel_head = MelHead(encoder.acoustic_mels)
        self.feature_head = FeatureHead(POOL * encoder.width)
        self.reader = reader

    def init(self, key: jax.Array) -> Params:
        """Parameters {"encoder", "quantizer", "mel_head", "feature_head"}, "adapter" if read."""
        keys = jax.random.split(key, 5)
        wave, frames = jnp.zeros((1, 2 * FRAME_SAMPLES)), jnp.full((1,), 2, jnp.int32)
        encoder = self.features.init(keys[0], wave, frames)
        semantic, acoustic = self.features.apply(encoder, wave, frames)
        quantizer = self.quantizer.init(keys[1], semantic, acoustic, frames, frames)
        quantized = self.quantizer.apply(quantizer, semantic, acoustic, frames, frames)
        valid = jnp.ones((1, 2 * POOL), bool)
        params = {
            "encoder": encoder["params"],
            "quantizer": quantizer["params"],
            "mel_head": self.mel_head.init(keys[2], quantized.semantic, valid)["params"],
            "feature_head": self.feature_head.init(keys[3], quantized.semantic)["params"],
        }
        if self.reader:
            params["adapter"] = self.reader.adapter.init(keys[4], quantized.semantic)["params"]
        return params

    def init_memory(self, params: Params) -> Params:
        """Steps so far, usage and hits of the codes, and statistics of the residual codebooks."""
        config = self.quantizer.config
        return {
            "steps": jnp.zeros((), jnp.int32),
            "usage": start_usage(config),
            "hits": start_hits(config, len(self.config.domains)),
            "means": start_means(params["quantizer"]["residual_codes"]),
        }

    def loss(
        self, params: Params, frozen: Params, memory: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Params]]:
        """Weighted sum of the terms in the module's docstring; `frozen` has "language_model"."""
        frames = frames_of(batch)
        keys = jax.random.split(key)
        rate = sample_rate_index(keys[0], self.config.rate_weights, frames.shape[0])
        semantic, acoustic = self._features(params["encoder"], batch["wave"], frames)
        quantized = self.quantizer.apply(
            {"params": params["quantizer"]},
            semantic,
            acoustic,
            frames,
            rate,
            exact=memory["steps"] < self.config.warmup_steps,
        )
        heard = (quantized.embedding, frames)
        usage = update_usage(memory["usage"], quantized, self.config.usage_decay)
        terms = {
            "text": lambda: jax.lax.cond(
                memory["steps"] < self.config.text_after,
                lambda: jnp.zeros(()),
                lambda: self._per_token("score", params, frozen, heard, batch),
            ),
            "alignment": lambda: self._per_token("align", params, frozen, heard, batch),
            "mel": lambda: self._mel_error(params, quantized.embedding, batch, frames),
            "feature": lambda: self._feature_error(params, quantized, semantic, frames),
            "codes": lambda: quantized.loss,
            "info": lambda: sum(jnp.mean(information(p)) for p in usage.values()),
            "confidence": lambda: quantized.confidence,
        }
        values = {name: terms[name]() for name in self.weights}
        total = sum((weight * values[name] for name, weight in self.weights.items()), 0.0)
        memory = self._remember(memory, usage, quantized, frames, batch, keys[1])
        metrics = usage_metrics(memory["hits"], self.config.domains)
        return jnp.asarray(total), ({**values, **metrics}, memory)

    def refresh(self, params: Params, memory: Params) -> Params:
        """Sets the residual codebooks to what the memory says, as no gradient does."""
        codes = centroids(memory["means"])
        return {**params, "quantizer": {**params["quantizer"], "residual_codes": codes}}

    def evaluate(
        self, params: Params, frozen: Params, memory: Params, batch: Batch, key: jax.Array
    ) -> Metrics:
        """Loss and metrics; with a reader, also what the codes say about the text.

        For 0 and all residual codebooks: nats per token of the text, given the right audio and
        given that of another clip of the same domain, and `information`, their difference in nats
        per clip, which estimates a lower bound of I(Z;Y).
        """
        loss, (metrics, _) = self.loss(params, frozen, memory, batch, key)
        metrics = {"loss": loss, **metrics}
        if not self.reader:
            return metrics
        frames = frames_of(batch)
        features = self._features(params["encoder"], batch["wave"], frames)
        for k in (LADDER[0], LADDER[-1]):
            quantized = self.quantizer.apply(
                {"params": params["quantizer"]}, *features, frames, jnp.full_like(frames, k)
            )
            found = self._information(params, frozen, quantized.embedding, frames, batch)
            metrics |= {f"{name}_k{k}": value for name, value in found.items()}
        return metrics

    def _features(
        self, params: Params, wave: jax.Array, frames: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        if not self.config.train_semantic_tower:
            params = {**params, "semantic": jax.lax.stop_gradient(params["semantic"])}
        return self.features.apply({"params": params}, wave, frames)

    def _per_token(
        self,
        method: str,
        params: Params,
        frozen: Params,
        heard: tuple[jax.Array, jax.Array],
        batch: Batch,
    ) -> jax.Array:
        read = getattr(self.reader, method)
        nats, tokens = read(params["adapter"], frozen, *heard, batch)
        return jnp.sum(nats) / jnp.maximum(jnp.sum(tokens), 1.0)

    def _information(
        self, params: Params, frozen: Params, embedding: jax.Array, frames: jax.Array, batch: Batch
    ) -> Metrics:
        assert self.reader
        other = neighbour(batch["domain"])
        adapter = params["adapter"]
        right, tokens = self.reader.score(adapter, frozen, embedding, frames, batch)
        wrong, _ = self.reader.score(adapter, frozen, embedding[other], frames[other], batch)
        clips, count = jnp.sum(tokens > 0, dtype=jnp.float32), jnp.sum(tokens)
        some = jnp.where(clips > 0, 1.0, jnp.nan)  # a batch without text says nothing
        return {
            "text_right": some * jnp.sum(right) / count,
            "text_wrong": some * jnp.sum(wrong) / count,
            "information": some * jnp.sum(wrong - right) / clips,
        }

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

    def _remember(
        self,
        memory: Params,
        usage: Params,
        quantized: Quantized,
        frames: jax.Array,
        batch: Batch,
        key: jax.Array,
    ) -> Params:
        config, codes = self.config, quantized.codes
        valid = jnp.arange(codes.shape[2])[None] < frames[:, None]
        chosen = jnp.moveaxis(codes[:, 1:], 1, 0)
        new = {
            "steps": memory["steps"] + 1,
            "usage": usage,
            "hits": update_hits(memory["hits"], codes, frames, batch["domain"], config.hits_decay),
            "means": update_means(
                memory["means"], quantized.residuals, chosen, valid, key, config.codebook_decay
            ),
        }
        return jax.lax.stop_gradient(new)


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


def neighbour(domain: jax.Array) -> jax.Array:
    """For each row of domain (B,), the next row of the same domain, round the batch; (B,) int32.

    A row that is alone is its own neighbour.
    """
    rows = jnp.arange(domain.shape[0])
    ahead = (rows[None] - rows[:, None] - 1) % rows.size
    same = domain[None] == domain[:, None]
    return jnp.argmin(jnp.where(same, ahead, rows.size), axis=1).astype(jnp.int32)
