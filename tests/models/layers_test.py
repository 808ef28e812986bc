from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax.models.layers import (
    ConvNeXtBlock,
    DepthwiseConv,
    attend,
    dense,
    matmul,
    normalise,
    rotary,
    sinusoids,
)
from tests.tiny import drawn, jit


def normals(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 4, 5)])
def test_dense_is_an_ordinary_dense_layer(rng: np.random.Generator, shape: tuple) -> None:
    x, ours, plain = normals(rng, *shape), dense(7), nn.Dense(7)
    params = ours.init(jax.random.key(0), x)

    def value_and_gradient(module: nn.Module) -> Any:
        def loss(params: Any, x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(module.apply(params, x)))

        return module.apply(params, x), jax.grad(loss, (0, 1))(params, x)

    for a, b in zip(
        *map(jax.tree.leaves, (value_and_gradient(ours), value_and_gradient(plain))), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


def product_and_gradients(x: jax.Array, kernel: jax.Array, weight: jax.Array) -> Any:
    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum((matmul(x, kernel) * weight).astype(jnp.float32))

    return jit(matmul)(x, kernel), *jit(jax.grad(loss, (0, 1)))(x, kernel)


@pytest.mark.parametrize("rows", [64, 5])  # a multiple of a block, and none
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_matmul_multiplies_as_precisely_as_asked(
    rng: np.random.Generator, rows: int, precision: str
) -> None:
    x, kernel, weight = normals(rng, rows, 96), normals(rng, 96, 32), normals(rng, rows, 32)
    with jax.default_matmul_precision(precision):
        found = product_and_gradients(x, kernel, weight)
    a, b, g = (np.asarray(v, np.float64) for v in (x, kernel, weight))
    error = 0.0
    for value, expected in zip(found, (a @ b, g @ b.T, a.T @ g), strict=True):
        assert value.dtype == jnp.float32
        error = max(error, np.abs(value - expected).max() / np.abs(expected).max())
    assert error < (1e-6 if precision == "float32" else 1e-2)
    assert error > 1e-4 or precision == "float32"  # it did round


def test_matmul_sums_in_float32(rng: np.random.Generator) -> None:
    """257 ones are 256 in bfloat16, whose next number is 258."""
    ones = jnp.ones((32, 258), jnp.bfloat16)
    product, to_x, to_kernel = product_and_gradients(
        ones, ones.T[:, :1], jnp.ones((32, 1), jnp.bfloat16)
    )
    assert product.dtype == to_x.dtype == to_kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(product.astype(jnp.float32), 258.0)
    np.testing.assert_array_equal(to_kernel.astype(jnp.float32), 32.0)


def test_sinusoids_are_those_of_whisper() -> None:
    width, length = 8, 5
    rates = np.exp(-np.log(10_000) / (width // 2 - 1) * np.arange(width // 2))
    angles = np.arange(length)[:, None] * rates
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(sinusoids(jnp.arange(length), width), expected, atol=1e-5)
    grid = sinusoids(jnp.arange(6.0).reshape(2, 3), width)
    assert grid.shape == (2, 3, width)
    np.testing.assert_allclose(grid[1, 1], expected[4], atol=1e-5)


def test_rotary_sees_relative_positions_only(rng: np.random.Generator) -> None:
    # The same query and key at every position: their product may depend on the distance alone.
    query, key = (jnp.broadcast_to(normals(rng, 1, 1, 2, 8), (1, 9, 2, 8)) for _ in range(2))
    products = np.einsum("bthc,bshc->bhts", rotary(query), rotary(key))
    np.testing.assert_allclose(products[..., 1:, 1:], products[..., :-1, :-1], atol=1e-5)
    assert np.ptp(products[0, 0, 0]) > 0.1  # and it does depend on it
    np.testing.assert_array_equal(rotary(query)[:, 0], query[:, 0])
    np.testing.assert_allclose(
        jnp.linalg.norm(rotary(query), axis=-1), jnp.linalg.norm(query, axis=-1), rtol=1e-5
    )


def test_attention_is_a_softmax_over_the_valid_frames(rng: np.random.Generator) -> None:
    query, key, value = (np.asarray(normals(rng, 2, 6, 3, 4)) for _ in range(3))
    lengths = np.asarray([6, 4])
    found = attend(query, key, value, jnp.arange(6)[None] < lengths[:, None])
    for row, length in enumerate(lengths):
        logits = np.einsum("thc,shc->hts", query[row], key[row, :length]) / 2.0
        weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        expected = np.einsum("hts,shc->thc", weights, value[row, :length])
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_attention_of_an_empty_row_is_finite(rng: np.random.Generator) -> None:
    x = normals(rng, 1, 4, 2, 4)
    mixed, gradient = jax.value_and_grad(
        lambda x: jnp.sum(attend(x, x, x, jnp.zeros((1, 4), bool)) ** 2)
    )(x)
    assert np.isfinite(mixed) and np.isfinite(gradient).all()


def test_normalise_is_layer_norm_without_parameters(rng: np.random.Generator) -> None:
    x = 3.0 + 5.0 * normals(rng, 2, 3, 64)
    expected = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    np.testing.assert_allclose(normalise(x), expected, atol=1e-5)
    assert normalise(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert not normalise(jnp.zeros((1, 4))).any()


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_depthwise_convolution_is_the_textbook_one(
    rng: np.random.Generator, kernel_size: int
) -> None:
    x, conv = np.asarray(normals(rng, 2, 10, 3)), DepthwiseConv(kernel_size)
    params = conv.init(jax.random.key(0), x)["params"]
    params["bias"] = normals(rng, 3)
    found = conv.apply({"params": params}, x)
    for row in range(2):
        for channel in range(3):
            taps = np.asarray(params["kernel"])[::-1, channel]  # np.convolve flips its kernel
            expected = np.convolve(x[row, :, channel], taps, mode="same")
            np.testing.assert_allclose(
                found[row, :, channel], expected + params["bias"][channel], atol=1e-5
            )


def test_padding_does_not_reach_valid_frames_of_convnext(rng: np.random.Generator) -> None:
    x, lengths = normals(rng, 2, 12, 8), [12, 7]
    block = ConvNeXtBlock()
    valid = jnp.arange(12)[None] < jnp.asarray(lengths)[:, None]
    params = drawn(block.init, x, valid)
    apply = jit(block.apply)

    def valid_part(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(valid[..., None], block.apply(params, x, valid), 0.0) ** 2)

    gradient = jit(jax.grad(valid_part))(x)
    assert not gradient[1, 7:].any() and np.abs(gradient[1, :7]).min(axis=-1).all()
    alone = apply(params, x[1:, :7], jnp.ones((1, 7), bool))
    np.testing.assert_allclose(apply(params, x, valid)[1, :7], alone[0], atol=1e-5)
    spoilt = apply(params, x.at[1, 7:].set(jnp.nan), valid)
    np.testing.assert_allclose(spoilt[1, :7], alone[0], atol=1e-5)


def test_convnext_sees_its_neighbours(rng: np.random.Generator) -> None:
    x, valid, block = normals(rng, 1, 15, 4), jnp.ones((1, 15), bool), ConvNeXtBlock(kernel_size=7)
    params = drawn(block.init, x, valid)
    reach = jit(jax.grad(lambda x: jnp.sum(block.apply(params, x, valid)[0, 7] ** 2)))(x)
    np.testing.assert_array_equal(reach[0].any(axis=-1), np.abs(np.arange(15) - 7) <= 3)
