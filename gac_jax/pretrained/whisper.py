"""Whisper checkpoints in Hugging Face layout, as parameters of our Whisper encoder.

Only tensors of the encoder are read; the decoder part of a checkpoint is never loaded.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp  # also registers bfloat16 with numpy, which reading such files needs
import numpy as np
from safetensors import SafetensorError, safe_open

from gac_jax.errors import UserError
from gac_jax.models.layers import sinusoids

REMEDY = "save the model with transformers: save_pretrained(folder, max_shard_size='20GB')"
PREFIXES = ("model.encoder.", "encoder.")  # of the model with a head, and without
BLOCK_NORMS = {"attention_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm"}
BLOCK_DENSE = {  # our name: (their name, channels in and out in multiples of the width)
    "query": ("self_attn.q_proj", 1, 1),
    "key": ("self_attn.k_proj", 1, 1),
    "value": ("self_attn.v_proj", 1, 1),
    "out": ("self_attn.out_proj", 1, 1),
    "mlp_in": ("fc1", 1, 4),
    "mlp_out": ("fc2", 4, 1),
}


def load_whisper_encoder(folder: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """Reads the encoder of a Whisper checkpoint.

    Args:
      folder: holds config.json and model.safetensors (float32, float16 or bfloat16), as
        transformers' `save_pretrained` writes them for any Whisper model class.

    Returns:
      sizes: num_mels, width, depth and num_heads, named as in `EncoderConfig`.
      params: the parameters of `WhisperEncoder`, float32 numpy. Convolution kernels are
        (taps, in, out), dense kernels (in, out); those of blocks have a leading layer axis.

    Raises:
      UserError: a file is missing or damaged, or does not hold a Whisper model.
    """
    sizes = _read_sizes(folder / "config.json")
    path = folder / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: no such file; {REMEDY}")
    try:
        with safe_open(path, framework="numpy") as file:
            reader = _Reader(path, file, frozenset(file.keys()), sizes["width"])
            _check_positions(reader)
            params = {
                "conv1": reader.conv("conv1", sizes["num_mels"]),
                "conv2": reader.conv("conv2", sizes["width"]),
                "blocks": _blocks(reader, sizes["depth"]),
                "norm": reader.norm("layer_norm"),
            }
    except SafetensorError as error:
        raise UserError(f"{path}: damaged safetensors file ({error}); get it again") from error
    return sizes, params


def _read_sizes(path: Path) -> dict[str, int]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a folder with a Hugging Face Whisper model")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); get it again") from error
    if not isinstance(config, dict) or config.get("model_type") != "whisper":
        raise UserError(f'{path}: model_type is not "whisper"; name a folder with a Whisper model')
    if config.get("activation_function", "gelu") != "gelu":
        raise UserError(f"{path}: activation_function is not gelu; use a published Whisper model")
    try:
        sizes = {
            "num_mels": int(config["num_mel_bins"]),
            "width": int(config["d_model"]),
            "depth": int(config["encoder_layers"]),
            "num_heads": int(config["encoder_attention_heads"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no usable encoder sizes ({error}); {REMEDY}") from error
    if min(sizes.values()) < 1 or sizes["width"] % sizes["num_heads"]:
        raise UserError(f"{path}: impossible encoder sizes {sizes}; {REMEDY}")
    return sizes


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Tensors of one checkpoint, by their name inside the encoder."""

    path: Path
    file: Any  # what safe_open opens
    keys: frozenset[str]
    width: int

    def tensor(self, name: str) -> np.ndarray:
        """Returns a tensor as stored."""
        key = next((prefix + name for prefix in PREFIXES if prefix + name in self.keys), None)
        if key is None:
            raise UserError(f"{self.path}: tensor encoder.{name} is missing; {REMEDY}")
        value = self.file.get_tensor(key)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise UserError(
                f"{self.path}: tensor {key} is {value.dtype}; use weights that are not quantised"
            )
        return value

    def floats(self, name: str, *shape: int) -> np.ndarray:
        """Returns a tensor of a known shape as float32."""
        value = self.tensor(name)
        if value.shape != shape:
            raise UserError(
                f"{self.path}: tensor encoder.{name} has shape {value.shape}, config.json asks "
                f"for {shape}; use the config.json that came with the weights"
            )
        return value.astype(np.float32)

    def norm(self, name: str) -> dict[str, np.ndarray]:
        """Returns a layer norm."""
        return {
            "scale": self.floats(f"{name}.weight", self.width),
            "bias": self.floats(f"{name}.bias", self.width),
        }

    def conv(self, name: str, num_in: int) -> dict[str, np.ndarray]:
        """Returns a convolution of three taps onto `width` channels."""
        kernel = self.floats(f"{name}.weight", self.width, num_in, 3)
        return {
            "kernel": np.ascontiguousarray(kernel.transpose(2, 1, 0)),
            "bias": self.floats(f"{name}.bias", self.width),
        }

    def dense(self, name: str, num_in: int, num_out: int, bias: bool) -> dict[str, np.ndarray]:
        """Returns a linear map."""
        params = {"kernel": self.floats(f"{name}.weight", num_out, num_in).T}
        if bias:
            params["bias"] = self.floats(f"{name}.bias", num_out)
        return params


def _blocks(reader: _Reader, depth: int) -> dict[str, dict[str, np.ndarray]]:
    layers = [f"layers.{i}." for i in range(depth)]
    blocks = {
        ours: _stack([reader.norm(layer + theirs) for layer in layers])
        for ours, theirs in BLOCK_NORMS.items()
    }
    for ours, (theirs, num_in, num_out) in BLOCK_DENSE.items():
        size = (num_in * reader.width, num_out * reader.width)
        # A bias on keys would move all scores of a query alike, which softmax undoes.
        bias = ours != "key"
        blocks[ours] = _stack([reader.dense(layer + theirs, *size, bias) for layer in layers])
    return blocks


def _stack(layers: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {leaf: np.stack([layer[leaf] for layer in layers]) for leaf in layers[0]}


def _check_positions(reader: _Reader) -> None:
    """Refuses other positions than Whisper's, which our encoder computes instead of loading."""
    stored = reader.tensor("embed_positions.weight")
    expected = np.asarray(sinusoids(jnp.arange(stored.shape[0]), reader.width))
    # bfloat16 rounds values near one by up to eps / 4 = 0.002.
    tolerance = max(1e-3, float(jnp.finfo(stored.dtype).eps) / 2)
    same = stored.shape == expected.shape
    if not same or not np.allclose(stored.astype(np.float32), expected, rtol=0, atol=tolerance):
        raise UserError(
            f"{reader.path}: positions are not Whisper's sinusoids; use a published Whisper "
            "model, or one fine-tuned from it with its positions left alone"
        )
