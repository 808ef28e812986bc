"""Reading text from codes with a frozen language model: the term -log P(Y|Z) of Eq. 9.

One row of the language model's input is

    prefix | code frames through an adapter | suffix, which names the task | answer | end

with padding wherever a row is shorter than its part. Only answer and end are scored.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gac_jax.models.heads import TextAdapter
from gac_jax.models.language_model import LanguageModel, LanguageModelConfig, generate
from gac_jax.stages.task import Batch, Params


class Reader:
    """A language model, the adapter through which it sees codes, and its prompt."""

    def __init__(
        self,
        config: LanguageModelConfig,
        loudness: float,
        prefix: tuple[int, ...],
        stop_tokens: tuple[int, ...],
    ) -> None:
        """Builds the modules.

        Args:
          config: of the language model.
          loudness: root mean square of its word vectors, and so of what it hears.
          prefix: tokens in front of the audio.
          stop_tokens: tokens that end an answer.
        """
        self.model = LanguageModel(config)
        self.adapter = TextAdapter(config.width)
        self.loudness, self.prefix, self.stop_tokens = loudness, prefix, stop_tokens

    def score(
        self, adapter: Params, frozen: Params, embedding: jax.Array, frames: jax.Array, batch: Batch
    ) -> tuple[jax.Array, jax.Array]:
        """-log P(Y|Z) of each row.

        Args:
          adapter: parameters of the adapter.
          frozen: {"language_model"}.
          embedding: (B, N, C) embedded codes.
          frames: (B,) int32, the code frames that count.
          batch: text (B, L), text_length (B,) and answer_start (B,), all int32.

        Returns:
          Nats of each row's answer, and its number of tokens, each (B,) float32; zeros where a row
          has no text.
        """
        text, length = batch["text"], batch["text_length"]
        inputs, valid = self._row(adapter, frozen, embedding, frames, text, length)
        scored = self._in(text, length) & ~self._in(text, batch["answer_start"])

        @jax.checkpoint  # the logits are by far the largest array here
        def nats(hidden: jax.Array) -> jax.Array:
            logits = self._apply(frozen, hidden, method="logits")
            log_p = jax.nn.log_softmax(logits, axis=-1)
            return -jnp.take_along_axis(log_p, text[..., None], axis=-1)[..., 0]

        hidden = self._apply(frozen, inputs, valid, method="hidden")
        # The slot before a token is the one that predicts it.
        before = hidden[:, -text.shape[1] - 1 : -1]
        weight = scored.astype(jnp.float32)
        return jnp.sum(nats(before) * weight, axis=1), jnp.sum(weight, axis=1)

    def answer(
        self,
        adapter: Params,
        frozen: Params,
        embedding: jax.Array,
        frames: jax.Array,
        batch: Batch,
        max_tokens: int,
    ) -> jax.Array:
        """The model's own answers, (B, max_tokens) int32, by greedy choice; see `score`."""
        start = jnp.minimum(batch["answer_start"], batch["text_length"])
        inputs, valid = self._row(adapter, frozen, embedding, frames, batch["text"], start)
        params = frozen["language_model"]
        return generate(self.model, params, inputs, valid, max_tokens, self.stop_tokens)

    def _row(
        self,
        adapter: Params,
        frozen: Params,
        embedding: jax.Array,
        frames: jax.Array,
        text: jax.Array,
        length: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Input vectors (B, P + N + L, D), and which of them count."""
        rows = embedding.shape[0]
        prefix = jnp.tile(jnp.asarray(self.prefix, jnp.int32)[None], (rows, 1))
        words = self._apply(frozen, jnp.concatenate([prefix, text], axis=1), method="embed")
        audio = self.loudness * self.adapter.apply({"params": adapter}, embedding)
        split = prefix.shape[1]
        parts = [words[:, :split], audio.astype(words.dtype), words[:, split:]]
        counted = jnp.arange(embedding.shape[1])[None] < frames[:, None]
        always = jnp.ones(prefix.shape, bool)
        valid = jnp.concatenate([always, counted, self._in(text, length)], axis=1)
        return jnp.concatenate(parts, axis=1), valid

    def _in(self, text: jax.Array, length: jax.Array) -> jax.Array:
        return jnp.arange(text.shape[1])[None] < length[:, None]

    def _apply(self, frozen: Params, *arguments: jax.Array, method: str) -> jax.Array:
        params = jax.lax.stop_gradient(frozen["language_model"])
        return self.model.apply({"params": params}, *arguments, method=method)
