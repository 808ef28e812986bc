"""Whisper checkpoints in Hugging Face layout, read as our Whisper encoder and written from it.

Of a checkpoint that is read, only tensors of the encoder are; the decoder is never loaded.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from gac_jax.errors import UserError
from gac_jax.models.layers import sinusoids
from gac_jax.pretrained.checkpoint import INDEX, WEIGHTS, Checkpoint

REMEDY = "name a folder with a Hugging Face Whisper model"
# Of the model with a head, of the model without, and of the encoder by itself.
PREFIXES = ("model.encoder.", "encoder.", "")
POSITIONS = "embed_positions.weight"
MAX_POSITIONS = 1500  # 30 s, what Whisper was trained on
NORMS = {"attention_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm"}
DENSE = {  # our name: (their name, channels in and out in multiples of the width)
    "query": ("self_attn.q_proj", 1, 1),
    "key": ("self_attn.k_proj", 1, 1),
    "value": ("self_attn.v_proj", 1, 1),
    "out": ("self_attn.out_proj", 1, 1),
    "mlp_in": ("fc1", 1, 4),
    "mlp_out": ("fc2", 4, 1),
}

# Our path of a parameter: (its name inside their encoder, or inside a layer of it, and its shape
# there). Kernels there have their axes in the reverse order of ours.
Layout = dict[tuple[str, ...], tuple[str, tuple[int, ...]]]


def load_whisper_encoder(folder: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """Reads the encoder of a Whisper checkpoint.

    Args:
      folder: holds config.json and model.safetensors, or its shards and their index (float32,
        float16 or bfloat16), as transformers' `save_pretrained` writes them for any Whisper model
        class.

    Returns:
      sizes: num_mels, width, depth and num_heads, named as in `EncoderConfig`.
      params: the parameters of `WhisperEncoder`, float32 numpy. Convolution kernels are
        (taps, in, out), dense kernels (in, out); those of blocks have a leading layer axis.

    Raises:
      UserError: a file is missing or damaged, or does not hold a Whisper model.
    """
    with Checkpoint(folder) as checkpoint:
        sizes = _sizes(checkpoint)
        prefix = _prefix(checkpoint)
        _num_positions(checkpoint, prefix, sizes["width"])

        def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
            return checkpoint.floats(prefix + name, *shape).T

        params = {
            path: np.ascontiguousarray(read(name, shape))
            for path, (name, shape) in _outer_layout(sizes).items()
        }
        for path, (name, shape) in _layer_layout(sizes["width"]).items():
            layers = [read(f"layers.{i}.{name}", shape) for i in range(sizes["depth"])]
            params["blocks", *path] = np.stack(layers)
    return sizes, flax.traverse_util.unflatten_dict(params)


def save_whisper_encoder(
    folder: Path, sizes: dict[str, int], params: dict[str, Any], base: Path | None = None
) -> None:
    """Writes an encoder as a Whisper checkpoint that `load_whisper_encoder` and transformers read.

    Parameters are stored as float32, and transformers is told to load them so.

    Args:
      folder: where to; new or empty. It appears only once it is whole.
      sizes: as `load_whisper_encoder` returns them.
      params: the parameters of `WhisperEncoder`.
      base: the checkpoint the encoder was fine-tuned from. Everything but the encoder, such as
        decoder and tokenizer, is taken over from it, so that the result recognises speech as the
        base does. Without one, the checkpoint holds the encoder alone.

    Raises:
      UserError: `folder` holds files or cannot be written, or `base` is damaged or another size.
      ValueError: `params` are not those of an encoder of these sizes.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; name a new or an empty folder")
    if base is None:
        config, tensors = _new_config(sizes), {}
        prefix, num_positions = "encoder.", MAX_POSITIONS
    else:
        with Checkpoint(base) as checkpoint:
            _check_base(checkpoint, sizes)
            prefix = _prefix(checkpoint)
            num_positions = _num_positions(checkpoint, prefix, sizes["width"])
            tensors = {name: checkpoint.tensor(name) for name in checkpoint.keys}
            config = {k: v for k, v in checkpoint.config.items() if k != "torch_dtype"}
    # Where the base is float16, transformers would otherwise round the encoder to it.
    config["dtype"] = "float32"
    encoder = _encoder_tensors(sizes, params, num_positions)
    tensors |= {prefix + name: value for name, value in encoder.items()}
    _write(folder, config, tensors, base)


def _write(
    folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], base: Path | None
) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as staging:
            draft = Path(staging, "new")
            draft.mkdir()
            for path in base.iterdir() if base else ():
                # Tokenizer, feature extractor, generation settings.
                if path.is_file() and path.suffix in (".json", ".txt") and path.name != INDEX:
                    shutil.copyfile(path, draft / path.name)
            text = json.dumps(config, indent=2) + "\n"
            (draft / "config.json").write_text(text, encoding="utf-8")
            save_file(tensors, draft / WEIGHTS, metadata={"format": "pt"})  # transformers asks
            (draft / WEIGHTS).chmod(0o644)  # made for this user alone; unlike the rest
            os.replace(draft, folder)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: cannot be written ({reason}); name another folder") from error


def _encoder_tensors(
    sizes: dict[str, int], params: dict[str, Any], num_positions: int
) -> dict[str, np.ndarray]:
    """The encoder's tensors by their name inside it, positions too."""
    values = flax.traverse_util.flatten_dict(params)
    tensors = {POSITIONS: _positions(num_positions, sizes["width"])}
    layers = range(sizes["depth"])
    outer, layer = _outer_layout(sizes), _layer_layout(sizes["width"])
    expected = {path: shape[::-1] for path, (_, shape) in outer.items()}
    for path, (_, shape) in layer.items():
        expected["blocks", *path] = (len(layers), *shape[::-1])
    if {path: np.shape(value) for path, value in values.items()} != expected:
        raise ValueError(f"params are not those of a Whisper encoder with {sizes}")
    for path, (name, _) in outer.items():
        tensors[name] = _stored(values[path])
    for path, (name, _) in layer.items():
        stack = np.asarray(values["blocks", *path])
        tensors |= {f"layers.{i}.{name}": _stored(stack[i]) for i in layers}
    return tensors


def _stored(value: Any) -> np.ndarray:
    return np.asarray(value, np.float32).T.copy(order="C")  # safetensors ignores strides


def _outer_layout(sizes: dict[str, int]) -> Layout:
    """Parameters outside the blocks."""
    width = sizes["width"]
    return {
        ("conv1", "kernel"): ("conv1.weight", (width, sizes["num_mels"], 3)),
        ("conv1", "bias"): ("conv1.bias", (width,)),
        ("conv2", "kernel"): ("conv2.weight", (width, width, 3)),
        ("conv2", "bias"): ("conv2.bias", (width,)),
        ("norm", "scale"): ("layer_norm.weight", (width,)),
        ("norm", "bias"): ("layer_norm.bias", (width,)),
    }


def _layer_layout(width: int) -> Layout:
    """Parameters of one block."""
    layout: Layout = {}
    for ours, theirs in NORMS.items():
        layout[ours, "scale"] = (f"{theirs}.weight", (width,))
        layout[ours, "bias"] = (f"{theirs}.bias", (width,))
    for ours, (theirs, num_in, num_out) in DENSE.items():
        layout[ours, "kernel"] = (f"{theirs}.weight", (num_out * width, num_in * width))
        # A bias on keys would move all scores of a query alike, which softmax undoes.
        if ours != "key":
            layout[ours, "bias"] = (f"{theirs}.bias", (num_out * width,))
    return layout


def _prefix(checkpoint: Checkpoint) -> str:
    """What the names of the encoder's tensors begin with."""
    found = (prefix for prefix in PREFIXES if f"{prefix}conv1.weight" in checkpoint.keys)
    return next(found, "encoder.")


def _sizes(checkpoint: Checkpoint) -> dict[str, int]:
    config, path = checkpoint.config, checkpoint.folder / "config.json"
    if config.get("model_type") != "whisper":
        raise UserError(f'{path}: model_type is not "whisper"; {REMEDY}')
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


def _new_config(sizes: dict[str, int]) -> dict[str, Any]:
    """A config.json for the encoder; the sizes of a decoder follow it, as Whisper's do."""
    config: dict[str, Any] = {
        "architectures": ["WhisperModel"],
        "model_type": "whisper",
        "num_mel_bins": sizes["num_mels"],
        "d_model": sizes["width"],
        "max_source_positions": MAX_POSITIONS,
    }
    for part in ("encoder", "decoder"):
        config[f"{part}_layers"] = sizes["depth"]
        config[f"{part}_attention_heads"] = sizes["num_heads"]
        config[f"{part}_ffn_dim"] = 4 * sizes["width"]
    return config


def _check_base(checkpoint: Checkpoint, sizes: dict[str, int]) -> None:
    found = _sizes(checkpoint)
    if found != sizes:
        raise UserError(
            f"{checkpoint.folder}: its encoder has {found}, the one to save has {sizes}; name the "
            "checkpoint that this encoder was fine-tuned from"
        )


def _positions(length: int, width: int) -> np.ndarray:
    return np.asarray(sinusoids(jnp.arange(length), width))


def _num_positions(checkpoint: Checkpoint, prefix: str, width: int) -> int:
    """Counts positions; refuses others than Whisper's, which ours computes instead of loading."""
    name = prefix + POSITIONS
    stored = checkpoint.tensor(name)
    # bfloat16 rounds values near one by up to eps / 4 = 0.002.
    tolerance = max(1e-3, float(jnp.finfo(stored.dtype).eps) / 2)
    if stored.shape[1:] == (width,):
        expected = _positions(len(stored), width)
        if np.allclose(stored.astype(np.float32), expected, rtol=0, atol=tolerance):
            return len(stored)
    raise UserError(
        f"{checkpoint.path_of(name)}: positions are not Whisper's sinusoids; use a published "
        "Whisper model, or one fine-tuned from it with its positions left alone"
    )
