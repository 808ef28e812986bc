"""Released language models, as parameters of our `LanguageModel`.

Read are Llama (SmolLM2 too) and Qwen2 models, from a folder in Hugging Face layout or from a GGUF
file. What our network does not compute (sliding windows, other rotary scalings, experts) is
refused and not ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from gac_jax.errors import UserError
from gac_jax.models.language_model import LanguageModelConfig
from gac_jax.pretrained.checkpoint import Checkpoint
from gac_jax.pretrained.gguf_file import GgufFile

ARCHITECTURES = ("llama", "qwen2")
REMEDY = "use a Llama, SmolLM2 or Qwen2 model"
NORMS = {  # our name: (in Hugging Face layout, in GGUF)
    "attention_norm": ("input_layernorm", "attn_norm"),
    "mlp_norm": ("post_attention_layernorm", "ffn_norm"),
}
DENSE = {
    "query": ("self_attn.q_proj", "attn_q"),
    "key": ("self_attn.k_proj", "attn_k"),
    "value": ("self_attn.v_proj", "attn_v"),
    "out": ("self_attn.o_proj", "attn_output"),
    "gate": ("mlp.gate_proj", "ffn_gate"),
    "mlp_in": ("mlp.up_proj", "ffn_up"),
    "mlp_out": ("mlp.down_proj", "ffn_down"),
}
BIASED = ("query", "key", "value")  # where a model has biases at all

# (part, "weight" or "bias", layer or None, *shape) to float32 in their layout, (out, in).
Read = Callable[..., np.ndarray]


def load_language_model(
    path: Path, dtype: str = "float32"
) -> tuple[LanguageModelConfig, dict[str, Any]]:
    """Reads a language model.

    Args:
      path: a .gguf file, or a folder with config.json and model.safetensors (or its shards and
        their index), as transformers' `save_pretrained` writes it.
      dtype: "float32" or "bfloat16", of the parameters and of the config.

    Returns:
      config: the model's size and variant.
      params: the parameters of `LanguageModel`, numpy, dense kernels (in, out); those of blocks
        have a leading layer axis.

    Raises:
      UserError: a file is missing or damaged, or holds a model that `LanguageModel` is not.
    """
    if path.suffix == ".gguf":
        file = GgufFile(path)
        config = _gguf_config(file, dtype)
        return config, _params(config, _gguf_reader(file, config))
    with Checkpoint(path) as checkpoint:
        config = _folder_config(path / "config.json", checkpoint.config, dtype)
        return config, _params(config, _folder_reader(checkpoint))


def _folder_config(path: Path, values: dict[str, Any], dtype: str) -> LanguageModelConfig:
    _check_folder_options(path, values)

    def whole(key: str, default: Any = None) -> int:
        return _whole(path, key, values.get(key, default))

    num_heads, width = whole("num_attention_heads"), whole("hidden_size")
    head_dim = _whole(path, "head_dim", values.get("head_dim") or width // num_heads)
    rope = _rope(path, values)
    theta = _positive(path, "rope_theta", rope.get("rope_theta", 10_000.0))
    config = LanguageModelConfig(
        vocab_size=whole("vocab_size"),
        width=width,
        depth=whole("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_whole(
            path, "num_key_value_heads", values.get("num_key_value_heads") or num_heads
        ),
        head_dim=head_dim,
        mlp_width=whole("intermediate_size"),
        rope_theta=theta,
        norm_eps=_positive(path, "rms_norm_eps", values.get("rms_norm_eps", 1e-6)),
        tied=bool(values.get("tie_word_embeddings", False)),
        qkv_bias=values["model_type"] == "qwen2",
        rope_divisors=_rope_divisors(path, rope, theta, head_dim),
        dtype=dtype,
    )
    return _checked(path, config)


def _check_folder_options(path: Path, values: dict[str, Any]) -> None:
    """Refuses what our network does not compute."""
    model_type = values.get("model_type")
    if model_type not in ARCHITECTURES:
        raise UserError(f'{path}: model_type "{model_type}" is not supported; {REMEDY}')
    partial = _rope(path, values).get("partial_rotary_factor", 1)
    windows = "sliding_attention" in (values.get("layer_types") or ())
    refused = {
        "hidden_act": values.get("hidden_act", "silu") != "silu",
        "attention_bias": model_type == "llama" and values.get("attention_bias"),
        "mlp_bias": values.get("mlp_bias"),
        "use_sliding_window": values.get("use_sliding_window") or windows,
        "partial_rotary_factor": partial != 1,
        "quantization_config": values.get("quantization_config"),
    }
    for key, wrong in refused.items():
        if wrong:
            raise UserError(
                f"{path}: {key} = {values.get(key)!r} is not supported; {REMEDY} without"
            )


def _rope(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """What a config says of rotary positions: transformers 5 in one place, 4 in several."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{path}: rope_scaling = {rope!r} is not a JSON object; get it again")
    keys = ("rope_theta", "partial_rotary_factor")
    return {key: values[key] for key in keys if values.get(key) is not None} | rope


def _rope_divisors(
    path: Path, rope: dict[str, Any], theta: float, head_dim: int
) -> tuple[float, ...]:
    """What `rope_scaling` of a config divides each rotary rate by."""
    kind, half = rope.get("rope_type", rope.get("type", "default")), head_dim // 2
    if kind == "default":
        return ()
    if kind not in ("linear", "llama3"):
        raise UserError(f'{path}: rope scaling "{kind}" is not supported; {REMEDY} without')

    def number(key: str) -> float:
        return _positive(path, key, rope.get(key))

    factor = number("factor")
    if kind == "linear":
        return (factor,) * half
    # Llama 3.1: slow waves are stretched by the factor, fast ones not, a ramp between.
    slow, fast = number("low_freq_factor"), number("high_freq_factor")
    rates = theta ** -(np.arange(half) / half)
    turns = number("original_max_position_embeddings") * rates / (2 * math.pi)
    kept = np.clip((turns - slow) / (fast - slow), 0.0, 1.0)
    return tuple((1.0 / ((1.0 - kept) / factor + kept)).tolist())


def _gguf_config(file: GgufFile, dtype: str) -> LanguageModelConfig:
    architecture, path = file.get("general.architecture"), file.path
    _check_gguf_options(file, architecture)

    def whole(key: str, default: Any = None) -> int:
        key = f"{architecture}.{key}"
        return _whole(path, key, file.get(key, default))

    def positive(key: str, default: Any = None) -> float:
        key = f"{architecture}.{key}"
        return _positive(path, key, file.get(key, default))

    width, num_heads = whole("embedding_length"), whole("attention.head_count")
    head_dim = whole("attention.key_length", width // num_heads)
    config = LanguageModelConfig(
        vocab_size=file.shape("token_embd.weight")[0],
        width=width,
        depth=whole("block_count"),
        num_heads=num_heads,
        num_kv_heads=whole("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        mlp_width=whole("feed_forward_length"),
        rope_theta=positive("rope.freq_base", 10_000.0),
        norm_eps=positive("attention.layer_norm_rms_epsilon"),
        tied="output.weight" not in file.names,
        qkv_bias=architecture == "qwen2",
        rope_divisors=_gguf_rope_divisors(file, architecture, head_dim),
        dtype=dtype,
    )
    return _checked(path, config)


def _check_gguf_options(file: GgufFile, architecture: str) -> None:
    """Refuses what our network does not compute."""
    path = file.path
    if architecture not in ARCHITECTURES:
        raise UserError(f'{path}: architecture "{architecture}" is not supported; {REMEDY}')
    if file.get("split.count", 1) > 1:
        raise UserError(f"{path}: one part of several; join them with llama-gguf-split --merge")
    if file.get(f"{architecture}.expert_count", 0):
        raise UserError(f"{path}: a mixture of experts is not supported; {REMEDY} without")
    biased = {f"blk.0.{DENSE[ours][1]}.bias" for ours in DENSE}
    if architecture == "llama" and biased & file.names:
        raise UserError(f"{path}: a Llama with biases is not supported; {REMEDY} without")


def _gguf_rope_divisors(file: GgufFile, architecture: str, head_dim: int) -> tuple[float, ...]:
    half = head_dim // 2
    if file.get(f"{architecture}.rope.dimension_count", head_dim) != head_dim:
        raise UserError(f"{file.path}: rotary positions on part of a head; {REMEDY} without")
    if "rope_freqs.weight" in file.names:
        return tuple(file.floats("rope_freqs.weight", half).tolist())
    kind = file.get(f"{architecture}.rope.scaling.type", "none")
    if kind == "none":
        return ()
    if kind != "linear":
        raise UserError(f'{file.path}: rope scaling "{kind}" is not supported; {REMEDY} without')
    key = f"{architecture}.rope.scaling.factor"
    return (_positive(file.path, key, file.get(key)),) * half


def _folder_reader(checkpoint: Checkpoint) -> Read:
    # Saved with its head, a model's tensors have a prefix; saved as a bare model, they have none.
    prefix = "model." if any(key.startswith("model.") for key in checkpoint.keys) else ""
    names = {"embedding": "embed_tokens", "norm": "norm"}
    layer_names = {ours: theirs for ours, (theirs, _) in (NORMS | DENSE).items()}

    def read(part: str, leaf: str, layer: int | None, *shape: int) -> np.ndarray:
        if part == "head":
            name = "lm_head"
        elif layer is None:
            name = prefix + names[part]
        else:
            name = f"{prefix}layers.{layer}.{layer_names[part]}"
        return checkpoint.floats(f"{name}.{leaf}", *shape)

    return read


def _gguf_reader(file: GgufFile, config: LanguageModelConfig) -> Read:
    names = {"embedding": "token_embd", "norm": "output_norm", "head": "output"}
    layer_names = {ours: theirs for ours, (_, theirs) in (NORMS | DENSE).items()}
    interleaved = file.get("general.architecture") == "llama"

    def read(part: str, leaf: str, layer: int | None, *shape: int) -> np.ndarray:
        name = names[part] if layer is None else f"blk.{layer}.{layer_names[part]}"
        value = file.floats(f"{name}.{leaf}", *shape)
        if interleaved and part in ("query", "key"):
            # llama.cpp rotates neighbouring channels of Llama, we the two halves of a head.
            pairs = value.reshape(-1, config.head_dim // 2, 2, *shape[1:])
            value = pairs.swapaxes(1, 2).reshape(shape)
        return value

    return read


def _params(config: LanguageModelConfig, read: Read) -> dict[str, Any]:
    dtype = jnp.dtype(config.dtype)
    layers = range(config.depth)

    def stack(part: str, leaf: str, *shape: int) -> np.ndarray:
        values = (read(part, leaf, layer, *shape).T.astype(dtype) for layer in layers)
        return np.stack(list(values))

    blocks: dict[str, dict[str, np.ndarray]] = {
        part: {"scale": stack(part, "weight", config.width)} for part in NORMS
    }
    for part, (num_in, num_out) in _dense_sizes(config).items():
        blocks[part] = {"kernel": stack(part, "weight", num_out, num_in)}
        if config.qkv_bias and part in BIASED:
            blocks[part]["bias"] = stack(part, "bias", num_out)
    vocabulary = (config.vocab_size, config.width)
    params: dict[str, Any] = {
        "embedding": read("embedding", "weight", None, *vocabulary).astype(dtype),
        "blocks": blocks,
        "norm": {"scale": read("norm", "weight", None, config.width).astype(dtype)},
    }
    if not config.tied:
        kernel = read("head", "weight", None, *vocabulary).T
        params["head"] = {"kernel": kernel.astype(dtype)}
    return params


def _dense_sizes(config: LanguageModelConfig) -> dict[str, tuple[int, int]]:
    """Channels in and out of each linear map of a block."""
    width, mlp_width = config.width, config.mlp_width
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "query": (width, queries),
        "key": (width, keys),
        "value": (width, keys),
        "out": (queries, width),
        "gate": (width, mlp_width),
        "mlp_in": (width, mlp_width),
        "mlp_out": (mlp_width, width),
    }


def _whole(path: Path, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{path}: {key} = {value!r} is not a whole number above 0; get it again")
    return value


def _positive(path: Path, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(f"{path}: {key} = {value!r} is not a number above 0; get it again")
    return float(value)


def _checked(path: Path, config: LanguageModelConfig) -> LanguageModelConfig:
    if config.num_heads % config.num_kv_heads or config.head_dim % 2:
        raise UserError(
            f"{path}: impossible sizes, {config.num_heads} heads of {config.head_dim} channels on "
            f"{config.num_kv_heads} key heads; get the model again"
        )
    return config
