"""Heads that exist only while the encoder trains: they read from the codes what must be in them."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from gac_jax.models.layers import ConvNeXtBlock, dense, normalise


class MelHead(nn.Module):
    """Reconstructs the 50 Hz log-mel from code embeddings, so that codes learn acoustics.

    Attributes:
      num_mels: M.
      frames_per_code: mel frames in one code frame.
      width: channels.
      depth: ConvNeXt blocks at either rate.
    """

    num_mels: int
    frames_per_code: int = 4
    width: int = 256
    depth: int = 2

    @nn.compact
    def __call__(self, embedding: jax.Array, valid: jax.Array) -> jax.Array:
        """Maps (B, N, C), with valid (B, 4 N), to (B, 4 N, M)."""
        batch, codes, _ = embedding.shape
        linear = dense(self.frames_per_code * self.num_mels, name="linear")(embedding)
        x = dense(self.width, name="input")(embedding)
        for i in range(self.depth):
            x = ConvNeXtBlock(name=f"code_block_{i}")(x, valid[:, :: self.frames_per_code])
        x = dense(self.frames_per_code * self.width, name="unfold")(x)
        x = x.reshape(batch, codes * self.frames_per_code, self.width)
        for i in range(self.depth):
            x = ConvNeXtBlock(expansion=2, name=f"block_{i}")(x, valid)
        x = dense(self.num_mels, name="output")(nn.LayerNorm(name="norm")(x))
        return x + linear.reshape(x.shape)  # codes are linear in the log-mel to begin with


class FeatureHead(nn.Module):
    """Predicts the encoder's own feature before quantisation from the semantic code alone.

    Attributes:
      features: channels of the feature.
      width: hidden channels.
    """

    features: int
    width: int = 1024

    @nn.compact
    def __call__(self, embedding: jax.Array) -> jax.Array:
        """Maps (B, N, C) to (B, N, features)."""
        hidden = nn.gelu(dense(self.width, name="expand")(embedding))
        return dense(self.features, name="output")(hidden)


class TextAdapter(nn.Module):
    """Maps code embeddings to vectors that stand where a language model expects words.

    Attributes:
      width: channels D of the language model.
    """

    width: int

    @nn.compact
    def __call__(self, embedding: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Turns frames into would-be words.

        Args:
          embedding: (B, N, C).

        Returns:
          Vectors (B, N, D), of unit mean square at the start of training; and (B, N) float32, the
          log odds that a frame is blank, which says nothing beyond its neighbours: 0 at the start.
        """
        hidden = nn.gelu(dense(self.width, name="expand")(normalise(embedding)))
        vectors = nn.RMSNorm(name="norm")(dense(self.width, name="output")(hidden))
        blank = nn.Dense(1, kernel_init=nn.initializers.zeros, name="blank")(vectors)
        return vectors, blank[..., 0].astype(jnp.float32)
