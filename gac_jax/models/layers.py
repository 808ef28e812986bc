"""Building blocks shared by the encoder and the flow decoder."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def dense(features: int, **kwargs: Any) -> nn.Dense:
    """`nn.Dense` that multiplies plain matrices by `matmul`."""
    return nn.Dense(features, dot_general=_flat_dot_general, **kwargs)


def _flat_dot_general(
    x: jax.Array, kernel: jax.Array, dimensions: object, **kwargs: object
) -> jax.Array:
    del dimensions, kwargs  # nn.Dense always contracts the last axis of x with the first of kernel
    return matmul(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Product of two matrices that sums in float32, forwards and backwards.

    Multiplies in bfloat16 if the inputs are, or if `jax.default_matmul_precision` asks for it.
    XLA's CPU backend then uses the matrix units of recent processors, five times as fast as
    float32, where it is given plain products of untransposed matrices with a float32 sum, which
    the backward pass of `jnp.matmul` does not. Accelerators do the same either way.

    Args:
      x: (M, K).
      kernel: (K, N), same dtype.

    Returns:
      (M, N), same dtype.
    """
    return _product(x, kernel, x.dtype)


def _matmul_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return _product(x, kernel, x.dtype), (_rounded(x), _rounded(kernel))


def _matmul_backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = map(_transposed, saved)
    dtype = gradient.dtype
    return _product(gradient, kernel, dtype), _product(x, gradient, dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def _product(a: jax.Array, b: jax.Array, dtype: DTypeLike) -> jax.Array:
    product = jax.lax.dot(_rounded(a), _rounded(b), preferred_element_type=jnp.float32)
    return product.astype(dtype)


def _rounded(x: jax.Array) -> jax.Array:
    """In the dtype that products are asked to multiply in."""
    asked = jax.default_matmul_precision.value
    return x.astype(jnp.bfloat16) if asked in ("bfloat16", "BF16_BF16_F32") else x


def _transposed(x: jax.Array) -> jax.Array:
    """x.T; on CPU in two steps, which XLA does not fold into the product as it would one."""
    block = 32
    if x.dtype != jnp.bfloat16 or x.shape[0] % block:
        return x.T

    def in_two_steps(x: jax.Array) -> jax.Array:
        rows, columns = x.shape
        blocks = x.reshape(rows // block, block, columns).transpose(0, 2, 1)
        return blocks.transpose(1, 0, 2).reshape(columns, rows)

    return jax.lax.platform_dependent(x, cpu=in_two_steps, default=jnp.transpose)


def by_rows(x: jax.Array) -> jax.Array:
    """Keeps whole rows of a batch x (B, ...) on each chip, wherever parameters are split.

    Left to itself, XLA splits the channels of activations as those of the parameters they meet, and
    sums partial products over the chips in every layer: parameters are smaller, and should travel.
    No effect without a mesh of the axes `data` and `fsdp`.
    """
    if not {"data", "fsdp"} <= set(jax.sharding.get_abstract_mesh().axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(("data", "fsdp")))


def sinusoids(positions: jax.Array, width: int, max_period: float = 10_000.0) -> jax.Array:
    """Sinusoidal embedding, first half sines and second half cosines (Whisper's layout).

    Args:
      positions: any shape, float.
      width: even number of channels.
      max_period: longest wavelength divided by 2 pi.

    Returns:
      positions.shape + (width,), float32.
    """
    half = width // 2
    step = jnp.log(max_period) / (half - 1)
    rates = jnp.exp(-step * jnp.arange(half, dtype=jnp.float32))
    angles = positions[..., None].astype(jnp.float32) * jnp.expand_dims(
        rates, tuple(range(positions.ndim))
    )
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotary(x: jax.Array) -> jax.Array:
    """Rotates query or key pairs by their position (RoPE, rotate-half layout).

    Args:
      x: (B, T, H, C) with even C.

    Returns:
      Same shape and dtype; inner products then depend on relative position only.
    """
    _, length, _, channels = x.shape
    half = channels // 2
    rates = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * rates[None, :]
    cos = jnp.cos(angles).astype(x.dtype)[None, :, None, :]
    sin = jnp.sin(angles).astype(x.dtype)[None, :, None, :]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, valid: jax.Array) -> jax.Array:
    """Full attention over the valid frames of each row.

    Args:
      query: (B, T, H, C), like key and value; softmax runs in float32.
      key: see query.
      value: see query.
      valid: (B, T) bool, False where a row is padding.

    Returns:
      (B, T, H, C).
    """
    return jax.nn.dot_product_attention(query, key, value, mask=valid[:, None, None, :])


def normalise(x: jax.Array) -> jax.Array:
    """LayerNorm over the last axis without an affine map (adaLN supplies it), in float32."""
    h = x.astype(jnp.float32)
    h = h - jnp.mean(h, axis=-1, keepdims=True)
    h = h * jax.lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + 1e-6)
    return h.astype(x.dtype)


class DepthwiseConv(nn.Module):
    """Depthwise 1-D convolution, 'same' padding.

    Written as shifted multiply-adds: the grouped convolution of XLA's CPU backend made
    training steps several times slower.
    """

    kernel_size: int = 7
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, T, D) to (B, T, D)."""
        length, width = x.shape[1:]
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=0, out_axis=1)
        kernel = self.param("kernel", init, (self.kernel_size, width)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (width,)).astype(self.dtype)
        reach = self.kernel_size // 2
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (reach, reach), (0, 0)))
        taps = (padded[:, i : i + length] * kernel[i][None, None] for i in range(self.kernel_size))
        return sum(taps, start=bias[None, None])


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution and a pointwise MLP on a residual path (Liu et al., 2022)."""

    expansion: int = 4
    kernel_size: int = 7
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """Maps x (B, T, D) to (B, T, D); padding frames (valid False) count as zeros."""
        width = x.shape[-1]
        h = jnp.where(valid[..., None], x, jnp.zeros_like(x))
        h = DepthwiseConv(self.kernel_size, self.dtype, name="depthwise")(h)
        h = nn.LayerNorm(dtype=self.dtype, name="norm")(h)
        h = nn.gelu(dense(self.expansion * width, dtype=self.dtype, name="expand")(h))
        return x + dense(width, dtype=self.dtype, name="project")(h)
