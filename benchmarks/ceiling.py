"""What a machine's matrix units reach, and how many multiplications a program asks of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

SIZES = {"cpu": (512, 1024, 2048, 4096), "accelerator": (4096, 8192, 16_384)}


class Ceiling(NamedTuple):
    """The best rate of a plain matrix product.

    Attributes:
      flops: floating-point operations a second of one device.
      size: rows and columns of the matrices that reached it.
    """

    flops: float
    size: int


def measure(precision: str, repeats: int = 5, sizes: tuple[int, ...] = ()) -> Ceiling:
    """Times square products of several sizes on every core of one device; the best counts.

    Args:
      precision: 'float32', or 'bfloat16' for products of bfloat16 matrices with a float32 sum.
      repeats: times that each size is tried.
      sizes: by default `SIZES` of the platform.
    """
    dtype = jnp.dtype(precision)
    exact = jax.lax.Precision.HIGHEST if precision == "float32" else None  # no TF32 on GPUs
    product = jax.jit(
        lambda a, b: jax.lax.dot(a, b, precision=exact, preferred_element_type=jnp.float32)
    )

    def rate(size: int) -> float:
        matrix = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
        return 2.0 * size**3 / best(lambda: product(matrix, matrix), repeats)

    platform = "cpu" if jax.default_backend() == "cpu" else "accelerator"
    flops, size = max((rate(size), size) for size in sizes or SIZES[platform])
    return Ceiling(flops, size)


def best(run: Callable[[], Any], repeats: int) -> float:
    """Least seconds of several runs after one that compiles; the least is disturbed the least."""
    jax.block_until_ready(run())
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        spent.append(time.perf_counter() - start)
    return min(spent)


def matmul_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Floating-point operations of all products and convolutions that a function asks for.

    They are counted in the traced program, a loop as often as it runs, and the dearest branch of a
    condition. The cost analysis of a compiled program counts the body of a loop once: a fraction of
    what a network with stacked layers costs.

    Args:
      function: any that JAX can trace.
      *arguments: arrays or their shapes.

    Raises:
      ValueError: a loop with products whose length is not known before it runs.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(program: Jaxpr) -> float:
    return sum(_cost(equation) for equation in program.eqns)


def _cost(equation: JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    inputs: list[Any] = [x.aval for x in equation.invars]
    outputs: list[Any] = [x.aval for x in equation.outvars]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * outputs[0].size * math.prod(inputs[0].shape[i] for i in contracted)
    if name == "conv_general_dilated":
        channels = inputs[1].shape[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * outputs[0].size * inputs[1].size / channels
    costs = [_count(inner) for inner in _inner(params)]
    if name == "cond":
        return max(costs)
    if name == "while" and any(costs):
        raise ValueError("a while loop with products in it may run any number of times")
    return sum(costs) * params.get("length", 1) if name == "scan" else sum(costs)


def _inner(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Programs within an equation; of a function with its own derivative, the function alone."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
