"""Counts the multiplications of a traced function: those of matrix products and convolutions.

Counted in the traced program, not the compiled one, whose own count takes a loop over layers once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax


def flops(jaxpr: Any) -> int:
    """Floating-point operations of the products in a jaxpr, a multiplication and an addition each.

    Of the branches of a conditional, the dearest counts; a loop of unknown length counts once.

    Args:
      jaxpr: for example `jax.jit(f).trace(*args).jaxpr`.
    """
    return sum(_flops(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _flops(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        lhs = equation.invars[0].aval.shape
        depth = math.prod(lhs[axis] for axis in contracted)
        return 2 * depth * math.prod(equation.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        depth = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * depth * math.prod(equation.outvars[0].aval.shape)
    if name == "cond":
        return max(map(flops, params["branches"]))
    times = params["length"] if name == "scan" else 1
    return times * sum(map(flops, _inner(params)))


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among the parameters of an operation."""
    for leaf in jax.tree.leaves(params, is_leaf=_is_jaxpr):
        if _is_jaxpr(leaf):
            yield leaf


def _is_jaxpr(value: object) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")
