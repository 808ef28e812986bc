import jax
import jax.numpy as jnp
import pytest

from benchmarks import ceiling
from gac_jax.models.layers import matmul

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))
PRODUCT = 2 * 3 * 5 * 7


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_ceiling_is_a_rate_of_one_of_the_sizes(precision: str) -> None:
    found = ceiling.measure(precision, repeats=1, sizes=(8, 16))
    assert found.flops > 0 and found.size in (8, 16)


def test_a_product_costs_two_operations_for_each_of_its_terms() -> None:
    assert ceiling.matmul_flops(jnp.dot, A, B) == PRODUCT
    assert ceiling.matmul_flops(jax.jit(jnp.dot), A, B) == PRODUCT
    assert ceiling.matmul_flops(lambda a: jnp.sin(a) + a, A) == 0


def test_a_batched_product_costs_as_much_as_its_rows() -> None:
    rows = jnp.ones((4, 3, 5))
    assert ceiling.matmul_flops(lambda x: jnp.einsum("bij,jk->bik", x, B), rows) == 4 * PRODUCT


def test_a_loop_costs_as_much_as_all_its_turns() -> None:
    def loop(a: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, _: (x @ B @ B.T, None), a, None, length=6)[0]

    assert ceiling.matmul_flops(loop, A) == 6 * 2 * PRODUCT


def test_a_condition_costs_as_much_as_its_dearest_branch() -> None:
    def choose(a: jax.Array) -> jax.Array:
        return jax.lax.cond(a[0, 0] > 0, lambda x: x @ B @ B.T, lambda x: x @ (B @ B.T), a)

    # The other one costs 2 x (5 x 7 x 5 + 3 x 5 x 5) operations, which is more than 4 x 3 x 5 x 7.
    assert ceiling.matmul_flops(choose, A) == 2 * (5 * 7 * 5 + 3 * 5 * 5)


def test_a_gradient_costs_two_further_products() -> None:
    both = jax.grad(lambda a, b: jnp.sum(jnp.sin(a @ b)), argnums=(0, 1))
    assert ceiling.matmul_flops(both, A, B) == 3 * PRODUCT
    both = jax.grad(lambda a, b: jnp.sum(jnp.sin(matmul(a, b))), argnums=(0, 1))
    assert ceiling.matmul_flops(both, A, B) == 3 * PRODUCT
    assert ceiling.matmul_flops(matmul, A, B) == PRODUCT


def test_a_convolution_costs_its_kernel_at_every_output() -> None:
    signal, kernel = jnp.ones((2, 4, 10)), jnp.ones((6, 4, 3))  # (B, C, T), (out, in, width)
    cost = ceiling.matmul_flops(lambda x, k: jax.lax.conv(x, k, (1,), "SAME"), signal, kernel)
    assert cost == 2 * (2 * 6 * 10) * (4 * 3)


def test_a_loop_of_unknown_length_is_refused() -> None:
    def until_large(a: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ B @ B.T, a)

    with pytest.raises(ValueError, match="any number of times"):
        ceiling.matmul_flops(until_large, A)
