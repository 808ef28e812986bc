"""Reading text from codes with a frozen language model: the term -log P(Y|Z) of Eq. 9.

One row of the language model's input is

    prefix | code frames through an adapter | suffix, which names the task | answer | end

with padding wherever a row is shorter than its part. Only answer and end are scored. Frames that
the adapter calls blank are left out: what remains is about as many vectors as there are words.

Such a row is hard to learn from scratch, because the language model gives no hint which frame
should have been which word. `Reader.align` does, without the language model: connectionist temporal
classification (Graves et al., 2006) of frames as the model's own word vectors, which sums over all
ways to place the answer. It costs next to nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from gac_jax.models.heads import TextAdapter
from gac_jax.models.language_model import LanguageModel, LanguageModelConfig, generate
from gac_jax.stages.task import Batch, Params

NEVER = -1e5  # log-probability of what cannot be
SHARPNESS = 1.0  # of alignment: logit of a vector that is the word, in deviations of other words


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

    def align(
        self, adapter: Params, frozen: Params, embedding: jax.Array, frames: jax.Array, batch: Batch
    ) -> tuple[jax.Array, jax.Array]:
        """-log P(Y|Z) of each row by alignment of frames with words, the end left out.

        A frame is blank, or one of the words of the batch's answers: telling these apart is enough
        to learn from, and all words of a language would cost as much as the language model.

        Args and returns are those of `score`. A row whose answer has more tokens than frames, or
        none, has no score.
        """
        vectors, blank = self.adapter.apply({"params": adapter}, embedding)
        words, counted = self._words(batch)
        vocabulary, place = jnp.unique(words, size=words.size, fill_value=-1, return_inverse=True)
        known = self._apply(frozen, jnp.maximum(vocabulary, 0), method="embed") / self.loudness
        scale = SHARPNESS / vectors.shape[-1] ** 0.5
        alike = jnp.einsum("bnd,vd->bnv", vectors, known.astype(vectors.dtype)) * scale
        alike = jnp.where(vocabulary[None, None] < 0, NEVER, alike.astype(jnp.float32))
        log_p = jax.nn.log_sigmoid(-blank)[..., None] + jax.nn.log_softmax(alike)
        log_p = jnp.concatenate([jax.nn.log_sigmoid(blank)[..., None], log_p], axis=-1)
        silent = ~self._in(embedding[..., 0], frames)
        labels = jnp.where(counted, place.reshape(words.shape) + 1, 0)  # 0 is blank
        nats = optax.ctc_loss(
            log_p, silent.astype(jnp.float32), labels, (~counted).astype(jnp.float32)
        )
        tokens = jnp.sum(counted, axis=1)
        twice = jnp.sum(counted[:, 1:] & (words[:, 1:] == words[:, :-1]), axis=1)  # blanks between
        possible = (tokens > 0) & (tokens + twice <= frames)
        return jnp.where(possible, nats, 0.0), jnp.where(possible, tokens, 0).astype(jnp.float32)

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
        vectors, blank = self.adapter.apply({"params": adapter}, embedding)
        audio = self.loudness * vectors
        split = prefix.shape[1]
        parts = [words[:, :split], audio.astype(words.dtype), words[:, split:]]
        counted = self._in(blank, frames) & (blank <= 0)
        always = jnp.ones(prefix.shape, bool)
        valid = jnp.concatenate([always, counted, self._in(text, length)], axis=1)
        return jnp.concatenate(parts, axis=1), valid

    def _words(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Tokens of the answers from the first place on, (B, L), and which of them count."""
        text, start = batch["text"], batch["answer_start"]
        places = start[:, None] + jnp.arange(text.shape[1])[None]
        words = jnp.take_along_axis(text, jnp.minimum(places, text.shape[1] - 1), axis=1)
        counted = places < batch["text_length"][:, None]
        for end in self.stop_tokens:
            counted &= words != end
        return jnp.where(counted, words, self.stop_tokens[0]), counted

    def _in(self, text: jax.Array, length: jax.Array) -> jax.Array:
        return jnp.arange(text.shape[1])[None] < length[:, None]

    def _apply(self, frozen: Params, *arguments: jax.Array, method: str) -> jax.Array:
        params = jax.lax.stop_gradient(frozen["language_model"])
        return self.model.apply({"params": params}, *arguments, method=method)
