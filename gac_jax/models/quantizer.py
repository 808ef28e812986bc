"""The quantiser: one semantic codebook of 2^14 and eight residual codebooks of 2^8.

The semantic codebook is SimVQ (Zhu et al., 2024): a frozen random basis seen through a learned
linear map, so that every code moves with every gradient and none dies. The residual codebooks
(residual VQ, Zeghidour et al., 2021) describe the acoustic feature, one after the other, after
the semantic code has explained what it can; one of them tells of the partials of voices and of
nothing else, for where both compete the envelope wins. They are running means
(`gac_jax.models.kmeans`), which no gradient reaches, and pull no feature towards them: features
that are easy to code say little.
Gradients pass the semantic code by the rotation
trick (Fifty et al., 2024), and all residual codes together straight through: a rotation in every
layer of the chain multiplies up, and exploded in training.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gac_jax.models.layers import ConvNeXtBlock, dense


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
    """Codebook sizes.

    Attributes:
      width: channels C of the code embeddings that the decoder sees.
      semantic_size: codes of the semantic codebook, 2^14.
      semantic_dim: channels in which semantic codes are compared, as unit vectors. Few: 2^14 codes
        are dense in 12 channels and nowhere near anything in 64.
      num_residual: R residual codebooks.
      residual_size: codes of one residual codebook, 2^8.
      residual_dim: channels of the acoustic feature, which residual codes approximate.
      partials_dim: the last of these, which tell of the partials of voices.
      partials_place: of the residual codebook, counted from 0, that describes those alone.
      temperature: softness of the assignments that L_info sees, in standard deviations of a
        point's squared distances to all codes.
      commitment: weight of the pull of semantic features towards their codes, against that of codes
        towards features.
    """

    width: int = 256
    semantic_size: int = 16_384
    semantic_dim: int = 12
    num_residual: int = 8
    residual_size: int = 256
    residual_dim: int = 144
    partials_dim: int = 80
    partials_place: int = 2
    temperature: float = 0.25
    commitment: float = 0.25


class Assignment(NamedTuple):
    """Points x (B, N, d) assigned to a codebook.

    Attributes:
      codes: (B, N) int32, nearest code.
      points: (B, N, d) the codes' vectors.
      error: () codebook and commitment loss per valid frame.
      usage: (size,) mean soft assignment over the valid frames, differentiable.
      confidence: () mean of log size - H(p(z|x)), the literal second term of Eq. 9, in nats.
    """

    codes: jax.Array
    points: jax.Array
    error: jax.Array
    usage: jax.Array
    confidence: jax.Array


class Quantized(NamedTuple):
    """A quantised batch, with what the losses need.

    Attributes:
      codes: (B, 1 + R, N) int32.
      semantic: (B, N, C) embedding of the semantic code alone, differentiable.
      embedding: (B, N, C) with each row's residual codes, differentiable.
      loss: () codebook and commitment losses of the semantic codebook, and the share of the
        acoustic feature's power, partials aside, that the semantic code does not explain.
      residuals: (R, B, N, d) what each residual codebook had to describe, 0 in channels that are
        not its business; no gradient.
      semantic_usage: (semantic_size,) mean soft assignment.
      residual_usage: (R, residual_size) mean soft assignments.
      confidence: () see `Assignment`, of the semantic codebook.
    """

    codes: jax.Array
    semantic: jax.Array
    embedding: jax.Array
    loss: jax.Array
    residuals: jax.Array
    semantic_usage: jax.Array
    residual_usage: jax.Array
    confidence: jax.Array


class SemanticPoint(nn.Module):
    """What the semantic code of a frame is to tell, of its sound and the frames around it."""

    config: QuantizerConfig

    @nn.compact
    def __call__(self, semantic: jax.Array, acoustic: jax.Array, valid: jax.Array) -> jax.Array:
        """Maps semantic (B, N, Ds) and acoustic (B, N, Da) to unit vectors (B, N, semantic_dim)."""
        width = self.config.width
        x = dense(width, name="said")(semantic) + dense(width, name="heard")(acoustic)
        x = ConvNeXtBlock(kernel_size=5, name="block")(x, valid)
        return _unit(dense(self.config.semantic_dim, name="output")(nn.LayerNorm(name="norm")(x)))


class Explained(nn.Module):
    """What of the acoustic feature, partials aside, follows from the semantic codes around it."""

    config: QuantizerConfig

    @nn.compact
    def __call__(self, meaning: jax.Array, valid: jax.Array) -> jax.Array:
        """Maps embeddings of semantic codes (B, N, C) to (B, N, d); 0 at the start."""
        x = ConvNeXtBlock(kernel_size=5, name="block")(meaning, valid)
        zeros = nn.initializers.zeros
        x = nn.LayerNorm(name="norm")(x)
        described = self.config.residual_dim - self.config.partials_dim
        return dense(described, kernel_init=zeros, name="output")(x)


class Quantizer(nn.Module):
    """Features to codes, and codes to embeddings."""

    config: QuantizerConfig

    def setup(self) -> None:
        """Builds codebooks and projections."""
        config = self.config
        normal = nn.initializers.normal
        self.semantic_in = SemanticPoint(config)
        self.basis = self.param("basis", normal(1.0), (config.semantic_size, config.semantic_dim))
        self.basis_map = dense(config.semantic_dim, use_bias=False)
        # Points are unit vectors: channels of 1 put what is said on a par with how it sounds. Eight
        # times smaller, residual codes drown it wherever the sum of both is read.
        self.semantic_out = dense(config.width, kernel_init=normal(1.0))
        self.explained = Explained(config)
        self.residual_out = dense(config.width, use_bias=False)  # linear: prefixes add up
        # Small, so that at first the most aligned code wins and all codes are in play.
        shape = (config.num_residual, config.residual_size, config.residual_dim)
        self.residual_codes = self.param("residual_codes", normal(0.1), shape)

    def __call__(
        self,
        semantic: jax.Array,
        acoustic: jax.Array,
        num_frames: jax.Array,
        rate: jax.Array,
        exact: jax.Array | bool = False,
    ) -> Quantized:
        """Quantises features.

        Args:
          semantic: (B, N, Ds) float32.
          acoustic: (B, N, residual_dim) float32.
          num_frames: (B,) int32 valid frames; the rest counts in no loss.
          rate: (B,) int32, residual codebooks that each row's embedding uses, 0 .. R.
          exact: () bool; True embeds the features themselves instead of their codes, which is how
            training begins.
        """
        config = self.config
        valid = jnp.arange(semantic.shape[1])[None] < num_frames[:, None]
        point = self.semantic_in(semantic, jax.lax.stop_gradient(acoustic), valid)
        first = assign(point, self._semantic_codes(), valid, config)
        meaning = self.semantic_out(jnp.where(exact, point, rotate(point, first.points)))
        explained = self.explained(jax.lax.stop_gradient(meaning), valid)
        target = acoustic - jnp.pad(
            jax.lax.stop_gradient(explained), ((0, 0), (0, 0), (0, config.partials_dim))
        )
        # Learns by regression what of the acoustics follows from the meaning.
        envelope = jax.lax.stop_gradient(acoustic[:, :, : explained.shape[2]])
        unexplained, whole = _power(envelope - explained, valid), _power(envelope, valid)

        def step(residual: jax.Array, book: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple]:
            codes, business = book
            seen = residual * business
            layer = assign(seen, codes, valid, config)
            return residual - layer.points, (layer, seen)

        codebooks = (jax.lax.stop_gradient(self._books()), self._business())
        _, (rest, residuals) = jax.lax.scan(step, target, codebooks)
        described = _straight_through(target, rest.points, rate)
        some = (rate > 0).astype(target.dtype)[:, None, None]
        detail = self.residual_out(jnp.where(exact, some * target, described))
        return Quantized(
            codes=jnp.moveaxis(jnp.concatenate([first.codes[None], rest.codes]), 0, 1),
            semantic=meaning,
            embedding=meaning + detail,
            loss=first.error + unexplained / (whole + 1e-6),
            residuals=jax.lax.stop_gradient(residuals),
            semantic_usage=first.usage,
            residual_usage=rest.usage,
            confidence=first.confidence,
        )

    def codes(self, semantic: jax.Array, acoustic: jax.Array, num_frames: jax.Array) -> jax.Array:
        """The codes alone, (B, 1 + R, N) int32; arguments as for a call."""
        return self(semantic, acoustic, num_frames, jnp.zeros_like(num_frames)).codes

    def embed(self, codes: jax.Array, rate: jax.Array) -> jax.Array:
        """Embeds codes, as the receiver does.

        Args:
          codes: (B, 1 + R, N) int32; rows beyond a clip's rate are ignored.
          rate: (B,) int32, residual codebooks to use, 0 .. R.

        Returns:
          (B, N, C) float32.
        """
        meaning = self.semantic_out(self._semantic_codes()[codes[:, 0]])
        return meaning + _sum_first(self.residual_out(self._points(codes)), rate)

    def partials(self, codes: jax.Array, rate: jax.Array) -> jax.Array:
        """What codes tell of partials, (B, N, partials_dim); 0 where rates are too low for them."""
        return _sum_first(self._points(codes), rate)[:, :, -self.config.partials_dim :]

    def _points(self, codes: jax.Array) -> jax.Array:
        """(R, B, N, d) of codes (B, 1 + R, N)."""
        look_up = jax.vmap(lambda book, row: book[row], in_axes=(0, 1))
        return look_up(self._books(), codes[:, 1:])

    def _books(self) -> jax.Array:
        """(R, K, d): the residual codebooks."""
        return self.residual_codes * self._business()[:, 0]

    def _business(self) -> jax.Array:
        """(R, 1, 1, d): 1 in the channels that a residual codebook describes, 0 in the others."""
        config = self.config
        tells_partials = jnp.arange(config.num_residual) == config.partials_place
        is_partial = jnp.arange(config.residual_dim) >= config.residual_dim - config.partials_dim
        business = tells_partials[:, None] == is_partial[None]
        return business.astype(jnp.float32)[:, None, None]

    def _semantic_codes(self) -> jax.Array:
        return _unit(self.basis_map(jax.lax.stop_gradient(self.basis)))


def assign(
    x: jax.Array, codebook: jax.Array, valid: jax.Array, config: QuantizerConfig
) -> Assignment:
    """Assigns points to their nearest codes.

    Args:
      x: (B, N, d) float32.
      codebook: (size, d) float32.
      valid: (B, N) bool; other frames count neither in the loss nor in the usage.
      config: temperature and commitment weight.
    """
    distance = (
        jnp.sum(jnp.square(x), axis=-1, keepdims=True)
        - 2.0 * jnp.einsum("bnd,kd->bnk", x, codebook, precision="highest")
        + jnp.sum(jnp.square(codebook), axis=-1)[None, None]
    )
    codes = jnp.argmin(distance, axis=-1).astype(jnp.int32)
    points = codebook[codes]
    log_p = jax.nn.log_softmax(-_standardise(distance) / config.temperature, axis=-1)
    p = jnp.exp(log_p)
    confidence = jnp.log(float(codebook.shape[0])) + jnp.sum(p * log_p, axis=-1)
    return Assignment(
        codes=codes,
        points=points,
        error=_quantization_error(x, points, valid, config.commitment),
        usage=masked_mean(p, valid),
        confidence=masked_mean(confidence, valid),
    )


def rotate(x: jax.Array, target: jax.Array) -> jax.Array:
    """Rotation trick: returns target, with the gradient of the rotation that takes x there.

    Args:
      x: (..., d) points.
      target: (..., d) their codes; no gradient flows to them.

    Returns:
      (..., d), equal to target.
    """
    fixed, target = jax.lax.stop_gradient((x, target))
    e, q = _unit(fixed), _unit(target)
    middle = _unit(e + q)
    scale = _norm(target) / _norm(fixed)
    reflected = x - 2.0 * jnp.sum(x * middle, axis=-1, keepdims=True) * middle
    rotated = scale * (reflected + 2.0 * jnp.sum(x * e, axis=-1, keepdims=True) * q)
    # The forward value is target to the last bit, so that sender and receiver agree.
    return rotated + jax.lax.stop_gradient(target - rotated)


def _straight_through(target: jax.Array, points: jax.Array, rate: jax.Array) -> jax.Array:
    """Sum of the first rate (B,) of points (R, B, N, d), with the gradient of target (B, N, d).

    A row that uses no residual code passes no gradient.
    """
    some = (rate > 0).astype(target.dtype)[:, None, None]
    through = some * (target - jax.lax.stop_gradient(target))
    return _sum_first(jax.lax.stop_gradient(points), rate) + through


def masked_mean(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean of values (B, N, ...) over the frames where valid (B, N) holds; 0 if there are none."""
    weight = valid.reshape(valid.shape + (1,) * (values.ndim - 2)).astype(values.dtype)
    count = jnp.maximum(jnp.sum(weight), 1.0)
    return jnp.sum(values * weight, axis=(0, 1)) / count


def _quantization_error(
    x: jax.Array, points: jax.Array, valid: jax.Array, commitment: float
) -> jax.Array:
    fixed_x, fixed_points = jax.lax.stop_gradient((x, points))
    codebook_error = jnp.sum(jnp.square(fixed_x - points), axis=-1)
    commitment_error = jnp.sum(jnp.square(x - fixed_points), axis=-1)
    return masked_mean(codebook_error + commitment * commitment_error, valid)


def _power(x: jax.Array, valid: jax.Array) -> jax.Array:
    return masked_mean(jnp.sum(jnp.square(x), axis=-1), valid)


def _standardise(distance: jax.Array) -> jax.Array:
    """Zero mean and unit deviation over the codes, so that one temperature fits all scales."""
    centred = distance - jnp.mean(distance, axis=-1, keepdims=True)
    deviation = jnp.sqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-12)
    return centred / jax.lax.stop_gradient(deviation)


def _sum_first(residuals: jax.Array, rate: jax.Array) -> jax.Array:
    """Sum of the first rate (B,) of residuals (R, B, N, C)."""
    used = jnp.arange(residuals.shape[0])[:, None] < rate[None]
    return jnp.sum(residuals * used[:, :, None, None].astype(residuals.dtype), axis=0)


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def _unit(x: jax.Array) -> jax.Array:
    return x / _norm(x)
