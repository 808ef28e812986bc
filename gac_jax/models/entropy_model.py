"""The entropy model: how likely each code is, given those before it, in integers alone.

An entropy coder spends log2(1/p) bits on a code of probability p, so whoever foresees codes sends
fewer bits. Sender and receiver must compute the very same p, on whatever machines, next year as
well; floating-point networks do not, for sums depend on their order. Here every weight and every
activation is an integer (Balle et al., "Integer Networks for Data Compression with Latent-Variable
Models", 2019). They are held as float32, which is exact below 2^24 in any order and as fast as
matrix products get: sums stay below that by the bounds of weights and activations.

A gated recurrent unit with piecewise linear gates goes from frame to frame. The semantic code is
compared with a query made of its state; each residual code with one that also knows the semantic
code and the residual codes before it. Fixed point: a weight counts 1/64, a state 1/128, a logit
1/32 octave.

The functions take NumPy arrays, to code with, or JAX arrays, to learn with: there gradients pass
rounding as if it were not there.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from gac_jax.rates import MAX_RESIDUAL

Array = Any  # of NumPy or JAX
Weights = dict[str, Array]

ONE = 128  # of states and inputs
LARGEST = 127  # weight, query, key
LOGITS_PER_OCTAVE = 32
_WEIGHT_BITS, _STATE_BITS = 6, 7
_CODE_BITS = 5  # of embeddings of codes, of queries and of keys
_POINT_SCALE = 256  # of unit vectors; their numbers are small
_BIAS_STEP = 4  # logits


@dataclasses.dataclass(frozen=True)
class EntropyModelConfig:
    """Sizes.

    Attributes:
      width: channels of the state, and of what residual codes are foreseen by.
      code_dim: channels of a residual code.
      query_dim: channels in which semantic codes are compared.
      feature_width: features of a semantic code.
      semantic_dim: channels of its point.
      num_residual: residual codebooks.
      residual_size: codes of one.
    """

    width: int = 192
    code_dim: int = 48
    query_dim: int = 48
    feature_width: int = 64
    semantic_dim: int = 12
    num_residual: int = MAX_RESIDUAL
    residual_size: int = 256


def shapes(config: EntropyModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights by name."""
    width, point, code = config.width, config.semantic_dim, config.code_dim
    rates = config.num_residual + 1
    return {
        "input": (point + code + rates + 1, 3 * width),
        "state": (width, 3 * width),
        "feature": (point + 1, config.feature_width),
        "key": (config.feature_width, config.query_dim),
        "query": (width + 1, config.query_dim),
        "from_state": (width, width),
        "from_semantic": (point + config.feature_width, width),
        "from_codes": (code, width),
        "from_place": (config.num_residual, width),
        "residual_query": (width, code),
        "codes": (config.num_residual, config.residual_size, code),
        "bias": (config.num_residual, config.residual_size),
    }


def init(config: EntropyModelConfig, key: jax.Array) -> Weights:
    """Draws weights to learn from, real numbers; `rounded` makes the model's integers of them."""
    drawn: Weights = {}
    for name, shape in shapes(config).items():
        key, own = jax.random.split(key)
        scale = {"codes": 1.0, "bias": 0.0}.get(name, shape[0] ** -0.5)
        drawn[name] = scale * jax.random.normal(own, shape)
    return drawn


def rounded(weights: Weights) -> Weights:
    """The integers, -127 .. 127, that real weights are learnt for; gradients pass."""

    def integers(name: str, x: Array) -> Array:
        bits = _CODE_BITS if name == "codes" else _WEIGHT_BITS
        return _clip(_shift(x * 2.0**bits, 0), -LARGEST, LARGEST)

    return {name: integers(name, x) for name, x in weights.items()}


def integer_points(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Unit vectors (..., d) as integers."""
    return np.floor(points * _POINT_SCALE + 0.5).astype(np.float32)


def features(weights: Weights, points: Array) -> tuple[Array, Array]:
    """What semantic codes are: their points with features (V, d + F), and their keys (V, Q)."""
    xp = points.__array_namespace__()
    one = xp.full_like(points[:, :1], ONE)
    found = xp.concatenate([points, one], axis=-1) @ weights["feature"]
    found = _clip(_shift(found, _WEIGHT_BITS), 0, 2 * ONE - 1)
    key = _shift(found @ weights["key"], _WEIGHT_BITS + _STATE_BITS - _CODE_BITS)
    return xp.concatenate([points, found], axis=-1), _clip(key, -LARGEST, LARGEST)


def advance(weights: Weights, state: Array, point: Array, codes: Array, rate: Array) -> Array:
    """The state (..., H) after a frame.

    Args:
      weights: integers.
      state: (..., H) before it.
      point: (..., d) of its semantic code; 0 before the first frame.
      codes: (..., E) sum of its residual codes' embeddings; 0 before the first frame.
      rate: (..., R + 2) one of the first R + 1 is `ONE`, for 0 .. R residual codes, and the last
        before the first frame; the others are 0.
    """
    xp = state.__array_namespace__()
    width = state.shape[-1]
    given = xp.concatenate([point, codes, rate], axis=-1) @ weights["input"]
    kept = state @ weights["state"]
    bits = _WEIGHT_BITS + 2  # a quarter: hard sigmoids
    gates = _shift(given[..., : 2 * width] + kept[..., : 2 * width], bits) + ONE // 2
    keep, reset = xp.split(_clip(gates, 0, ONE), 2, axis=-1)
    heard = _shift(reset * _shift(kept[..., 2 * width :], _WEIGHT_BITS), _STATE_BITS)
    new = _clip(_shift(given[..., 2 * width :], _WEIGHT_BITS) + heard, -ONE, ONE)
    return _shift(keep * state + (ONE - keep) * new, _STATE_BITS)


def semantic_logits(weights: Weights, keys: Array, state: Array) -> Array:
    """Logits (..., V) of the next semantic code, given the state (..., H) and all keys (V, Q)."""
    xp = state.__array_namespace__()
    one = xp.full_like(state[..., :1], ONE)
    query = xp.concatenate([state, one], axis=-1) @ weights["query"]
    return _shift(_code_like(query) @ keys.T, _CODE_BITS)


def context(weights: Weights, state: Array, semantic: Array) -> Array:
    """What all residual codes of a frame are foreseen by: (..., H), not yet rectified.

    Args:
      weights: integers.
      state: (..., H) before the frame.
      semantic: (..., d + F) its semantic code, from `features`.
    """
    return state @ weights["from_state"] + semantic @ weights["from_semantic"]


def residual_logits(weights: Weights, frame: Array, codes: Array, place: int) -> Array:
    """Logits (..., 256) of the residual code in a place, from 0.

    Args:
      weights: integers.
      frame: (..., H) from `context`.
      codes: (..., E) sum of the embeddings of the frame's residual codes before it.
      place: which.
    """
    told = _spread(ONE * weights["from_place"][place], frame)
    frame = frame + codes @ weights["from_codes"] + told
    known = _clip(_shift(frame, _WEIGHT_BITS), 0, 2 * ONE - 1)
    query = _code_like(known @ weights["residual_query"])
    logits = _shift(query @ weights["codes"][place].T, _CODE_BITS)
    return logits + _spread(_BIAS_STEP * weights["bias"][place], logits)


def _code_like(x: Array) -> Array:
    """A product of weights and states with as many bits as an embedding of a code."""
    return _clip(_shift(x, _WEIGHT_BITS + _STATE_BITS - _CODE_BITS), -LARGEST, LARGEST)


def _spread(row: Array, like: Array) -> Array:
    return row.__array_namespace__().broadcast_to(row, like.shape)


def _shift(x: Array, bits: int) -> Array:
    """Divides by 2^bits and rounds half up."""
    real = x * 2.0**-bits
    if isinstance(x, np.ndarray):
        return np.floor(real + np.float32(0.5))
    return real + jax.lax.stop_gradient(jnp.floor(real + 0.5) - real)


def _clip(x: Array, low: int, high: int) -> Array:
    return x.__array_namespace__().clip(x, low, high)
