"""How weights are stored: float32, bfloat16, or int8 with scales.

Of int8 weights, matrices have one float32 scale per output channel, under their name and ":scale";
biases and norms stay float32. They are computed with as float32 whatever they were stored as.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

STORAGE = ("float32", "bfloat16", "int8")
_SCALE = ":scale"
_VECTORS = (".bias", ".scale")  # also where layers are stacked: their sizes differ widely by layer


def to_storage(tensors: dict[str, Any], storage: str) -> dict[str, np.ndarray]:
    """Rounds float32 tensors, by name, to one of `STORAGE`."""
    stored: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        array = np.asarray(value, np.float32, order="C")  # safetensors ignores strides
        if storage == "int8" and array.ndim >= 2 and not name.endswith(_VECTORS):
            stored[name], stored[name + _SCALE] = _quantize(array)
        else:
            stored[name] = array if storage != "bfloat16" else array.astype(jnp.bfloat16)
    return stored


def from_storage(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns float32 tensors by name; each gives its own kind of storage away."""
    return {
        name: array.astype(np.float32) * tensors.get(name + _SCALE, np.float32(1.0))
        for name, array in tensors.items()
        if not name.endswith(_SCALE)
    }


def _quantize(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 with one scale per index of every axis but the second to last."""
    scale = np.max(np.abs(array), axis=-2, keepdims=True) / 127.0
    scale = np.where(scale == 0.0, 1.0, scale).astype(np.float32)
    return np.round(array / scale).astype(np.int8), scale
