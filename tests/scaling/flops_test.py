from typing import Any

import jax
import jax.numpy as jnp

from gac_jax.scaling.flops import flops

PRODUCT = 2 * 4 * 8 * 8


def counted(f: Any, *shapes: tuple[int, ...]) -> int:
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return flops(jax.jit(f).trace(*arrays).jaxpr)


def scan(w: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda h, layer: (jnp.tanh(h @ layer), None), x, w)[0]


def test_products_count_twice_their_multiplications() -> None:
    assert counted(jnp.matmul, (4, 8), (8, 3)) == 2 * 4 * 8 * 3
    assert counted(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (5, 4, 8), (5, 8, 3)) == 960
    assert counted(lambda x: jnp.sin(x) + x, (4, 8)) == 0


def test_convolutions_count_their_taps() -> None:
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )

    assert counted(convolve, (2, 10, 4), (3, 4, 6)) == 2 * (2 * 10 * 6) * (3 * 4)


def test_a_scan_counts_every_layer() -> None:
    assert counted(scan, (5, 8, 8), (4, 8)) == 5 * PRODUCT


def test_gradients_cost_two_more_and_recomputation_one() -> None:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(scan(w, x))

    def saving(w: jax.Array, x: jax.Array) -> jax.Array:
        body = jax.checkpoint(lambda h, layer: (jnp.tanh(h @ layer), None), prevent_cse=False)
        return jnp.sum(jnp.sin(jax.lax.scan(body, x, w)[0]))

    both = ((5, 8, 8), (4, 8))
    assert counted(jax.grad(loss, (0, 1)), *both) == 3 * 5 * PRODUCT
    assert counted(jax.grad(saving, (0, 1)), *both) == 4 * 5 * PRODUCT


def test_the_dearest_branch_counts() -> None:
    def f(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w)

    assert counted(f, (4, 8), (8, 8)) == 2 * PRODUCT


def test_functions_inside_functions_count() -> None:
    inner = jax.custom_vjp(lambda x, w: jax.jit(jnp.matmul)(x, w))
    inner.defvjp(lambda x, w: (x @ w, w), lambda w, g: (g @ w.T, w))
    assert counted(lambda x, w: inner(x, w), (4, 8), (8, 8)) == PRODUCT
