"""Checkpoints that transformers wrote, and what it computes with them; see tests/golden."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gac_jax.errors import UserError
from gac_jax.models.language_model import LanguageModel, LanguageModelConfig, generate
from gac_jax.pretrained.language_model import load_language_model
from tests import assets

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = ("llama", "qwen2")
GGUF_NAMES = {  # by pieces of the Hugging Face names
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Tensors = dict[str, np.ndarray]
Damage = Callable[[Path], object]


def stored_tensors(name: str) -> Tensors:
    """All tensors of a golden checkpoint, float32."""
    paths = (GOLDEN / name).glob("model*.safetensors")
    return {k: v.astype(np.float32) for path in paths for k, v in load_file(path).items()}


def stored_config(name: str, **changes: object) -> dict[str, Any]:
    return json.loads((GOLDEN / name / "config.json").read_text(encoding="utf-8")) | changes


def write_folder(folder: Path, tensors: Tensors, config: dict[str, Any]) -> Path:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_gguf(
    path: Path, name: str, tensors: Tensors, kind: str = "F32", **changes: object
) -> Path:
    """Writes a checkpoint as llama.cpp's converter does; None among the changes drops a key."""
    gguf = pytest.importorskip("gguf", reason='pip install "gac_jax[text]"')
    config = stored_config(name)
    metadata = {
        "block_count": config["num_hidden_layers"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": config["rope_parameters"]["rope_theta"],
    }
    if name == "llama":
        metadata |= {"attention.key_length": 16, "rope.dimension_count": 16}
    writer = gguf.GGUFWriter(path, str(changes.pop("architecture", name)))
    for key, value in (metadata | changes).items():
        if value is not None:
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            full = key if key.startswith("split.") else f"{writer.arch}.{key}"
            add.get(type(value), writer.add_array)(full, value)
    for key, tensor in tensors.items():
        add_tensor(writer, gguf, gguf_name(key), gguf_rows(name, key, tensor), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(key: str) -> str:
    for theirs, ours in GGUF_NAMES.items():
        key = key.replace(f"{theirs}.", f"{ours}.")
    return key


def gguf_rows(name: str, key: str, tensor: np.ndarray) -> np.ndarray:
    """The rows of Llama's queries and keys, halves of a head interleaved."""
    if name != "llama" or not ("q_proj" in key or "k_proj" in key):
        return tensor
    order = [
        16 * head + i + 8 * j for head in range(len(tensor) // 16) for i in range(8) for j in (0, 1)
    ]
    return tensor[order]


def add_tensor(writer: Any, gguf: Any, name: str, tensor: np.ndarray, kind: str) -> None:
    if tensor.ndim == 1:  # GGUF files keep norms and biases whole
        writer.add_tensor(name, tensor)
        return
    kind = gguf.GGMLQuantizationType[kind]
    writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)


def rounded(tensors: Tensors, kind: str) -> Tensors:
    """The tensors after quantisation and back."""
    gguf = pytest.importorskip("gguf", reason='pip install "gac_jax[text]"')
    kind = gguf.GGMLQuantizationType[kind]
    return {
        key: gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind) if x.ndim == 2 else x
        for key, x in tensors.items()
    }


def logits_of(config: LanguageModelConfig, params: Any, tokens: np.ndarray) -> np.ndarray:
    valid = jnp.ones(tokens.shape, bool)
    return np.asarray(jax.jit(LanguageModel(config).apply)({"params": params}, tokens, valid))


def check_golden_logits(name: str, path: Path) -> None:
    expected = load_file(GOLDEN / name / "expected.safetensors")
    logits = logits_of(*load_language_model(path), expected["tokens"])
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-4)


def assert_equal_trees(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_gives_the_logits_of_transformers(name: str) -> None:
    assert len(list((GOLDEN / name).glob("model*.safetensors"))) == {"llama": 1, "qwen2": 2}[name]
    check_golden_logits(name, GOLDEN / name)


@pytest.mark.parametrize("name", MODELS)
def test_a_gguf_file_gives_the_logits_of_transformers(tmp_path: Path, name: str) -> None:
    check_golden_logits(name, write_gguf(tmp_path / "m.gguf", name, stored_tensors(name)))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
@pytest.mark.parametrize("name", MODELS)
def test_a_quantised_gguf_file_is_a_folder_of_its_rounded_weights(
    tmp_path: Path, name: str, kind: str
) -> None:
    tensors = stored_tensors(name)
    write_folder(tmp_path, rounded(tensors, kind), stored_config(name))
    config, params = load_language_model(write_gguf(tmp_path / "m.gguf", name, tensors, kind))
    same_config, same_params = load_language_model(tmp_path)
    assert_equal_trees(params, same_params)
    assert config == dataclasses.replace(same_config, norm_eps=config.norm_eps)
    assert config.norm_eps == pytest.approx(same_config.norm_eps)  # GGUF keeps 32 bits of it


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_the_tree_is_that_of_our_model(name: str, dtype: str) -> None:
    config, params = load_language_model(GOLDEN / name, dtype)
    tokens, valid = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
    init = LanguageModel(load_language_model(GOLDEN / name)[0]).init
    expected = jax.eval_shape(init, jax.random.key(0), tokens, valid)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, expected)
    leaves = jax.tree.leaves(params)
    assert all(isinstance(x, np.ndarray) and x.dtype == jnp.dtype(dtype) for x in leaves)
    assert config.dtype == dtype


def test_a_model_saved_without_its_head_is_read_too(tmp_path: Path) -> None:
    bare = {key.removeprefix("model."): x for key, x in stored_tensors("llama").items()}
    config, params = load_language_model(write_folder(tmp_path, bare, stored_config("llama")))
    expected_config, expected = load_language_model(GOLDEN / "llama")
    assert config == expected_config
    assert_equal_trees(params, expected)


def with_rope(old_style: bool, rope: dict[str, Any]) -> dict[str, Any]:
    """A config as transformers 5 writes it, or as it was written before."""
    config = stored_config("llama", rope_parameters=rope)
    if old_style:
        del config["rope_parameters"]
        scaling = {("type" if k == "rope_type" else k): v for k, v in rope.items()}
        config |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    return config


@pytest.mark.parametrize("old_style", [False, True])
@pytest.mark.parametrize("kind", ["linear", "llama3"])
def test_scaled_rotary_rates_are_those_of_transformers(
    tmp_path: Path, kind: str, old_style: bool
) -> None:
    golden = json.loads((GOLDEN / "rope.json").read_text(encoding="utf-8"))[kind]
    values = with_rope(old_style, golden["rope_parameters"])
    config, _ = load_language_model(write_folder(tmp_path, stored_tensors("llama"), values))
    np.testing.assert_allclose(config.rope_divisors, golden["divisors"], rtol=1e-5)
    assert config.rope_theta == 100_000.0


def test_scaled_rotary_rates_of_a_gguf_file(tmp_path: Path) -> None:
    tensors, path = stored_tensors("llama"), tmp_path / "m.gguf"
    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    config, _ = load_language_model(write_gguf(path, "llama", tensors, **scaling))
    assert config.rope_divisors == (4.0,) * 8
    tensors["rope_freqs.weight"] = np.arange(1, 9, dtype=np.float32)
    config, _ = load_language_model(write_gguf(path, "llama", tensors))
    assert config.rope_divisors == tuple(range(1, 9))


def with_config(name: str = "llama", **changes: object) -> Damage:
    def damage(folder: Path) -> None:
        shutil.copytree(GOLDEN / name, folder, dirs_exist_ok=True)
        config = stored_config(name, **changes)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    return damage


def without_file(name: str, missing: str) -> Damage:
    def damage(folder: Path) -> None:
        shutil.copytree(GOLDEN / name, folder, dirs_exist_ok=True)
        (folder / missing).unlink()

    return damage


def without_tensor(key: str) -> Damage:
    def damage(folder: Path) -> None:
        tensors = stored_tensors("llama")
        del tensors[key]
        write_folder(folder, tensors, stored_config("llama"))

    return damage


SHARD = "model-00002-of-00002.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"
REFUSED = {
    "no config": (without_file("llama", "config.json"), "config.json: no such file"),
    "no weights": (without_file("llama", "model.safetensors"), "model.safetensors: no such file"),
    "no shard": (without_file("qwen2", SHARD), f"{SHARD}: no such file"),
    "no tensor": (without_tensor(UP), f"model.safetensors: tensor {UP} is missing"),
    "no head": (with_config(tie_word_embeddings=False), "tensor lm_head.weight is missing"),
    "shape": (with_config(intermediate_size=65), r"tensor model.* has shape \(64, 32\)"),
    "model": (with_config(model_type="gpt2"), 'model_type "gpt2" is not supported'),
    "activation": (with_config(hidden_act="gelu"), "hidden_act = 'gelu' is not supported"),
    "bias": (with_config(attention_bias=True), "attention_bias = True is not supported"),
    "mlp bias": (with_config(mlp_bias=True), "mlp_bias = True is not supported"),
    "window": (with_config("qwen2", use_sliding_window=True), "use_sliding_window = True"),
    "layers": (with_config("qwen2", layer_types=["sliding_attention"]), "use_sliding_window"),
    "part": (with_config(partial_rotary_factor=0.5), "partial_rotary_factor = 0.5"),
    "quantised": (with_config(quantization_config={"bits": 4}), "quantization_config = .'bits'"),
    "no depth": (with_config(num_hidden_layers=None), "num_hidden_layers = None is not a whole"),
    "no width": (with_config(hidden_size=True), "hidden_size = True is not a whole number"),
    "epsilon": (with_config(rms_norm_eps=0), "rms_norm_eps = 0 is not a number above 0"),
    "heads": (with_config(num_key_value_heads=3), "impossible sizes, 4 heads of 16 channels on 3"),
    "rope": (with_config(rope_parameters=[1]), r"rope_scaling = \[1\] is not a JSON object"),
    "yarn": (with_config(rope_parameters={"rope_type": "yarn"}), 'rope scaling "yarn" is not'),
    "factor": (with_config(rope_parameters={"rope_type": "linear"}), "factor = None is not a"),
}


def check_refused(folder: Path, path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_language_model(path)
    text = str(caught.value)
    assert text.startswith(str(folder)) and "; " in text and "\n" not in text


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_a_folder_with_the_file_and_a_remedy(tmp_path: Path, case: str) -> None:
    damage, message = REFUSED[case]
    damage(tmp_path)
    check_refused(tmp_path, tmp_path, message)


REFUSED_GGUF: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"architecture": "gemma"}, 'm.gguf: architecture "gemma" is not supported'),
    "part": ({"split.count": 2}, "m.gguf: one part of several; join"),
    "experts": ({"expert_count": 8}, "m.gguf: a mixture of experts"),
    "no depth": ({"block_count": None}, "llama.block_count = None is not a whole number"),
    "heads": ({"attention.head_count_kv": [2, 1]}, r"llama.attention.head_count_kv = \[2, 1\]"),
    "epsilon": ({"attention.layer_norm_rms_epsilon": None}, "norm_rms_epsilon = None is not a"),
    "half": ({"rope.dimension_count": 8}, "rotary positions on part of a head"),
    "yarn": ({"rope.scaling.type": "yarn"}, 'rope scaling "yarn" is not supported'),
    "shape": ({"feed_forward_length": 65}, r"tensor blk.0.ffn_gate.weight has shape \(64, 32\)"),
    "too deep": ({"block_count": 3}, "tensor blk.2.attn_norm.weight is missing"),
}


@pytest.mark.parametrize("case", REFUSED_GGUF)
def test_refuses_a_gguf_file_with_its_name_and_a_remedy(tmp_path: Path, case: str) -> None:
    changes, message = REFUSED_GGUF[case]
    path = write_gguf(tmp_path / "m.gguf", "llama", stored_tensors("llama"), **changes)
    check_refused(tmp_path, path, message)


def test_refuses_a_gguf_llama_with_biases(tmp_path: Path) -> None:
    bias = {"model.layers.0.self_attn.v_proj.bias": np.ones(32, np.float32)}
    path = write_gguf(tmp_path / "m.gguf", "llama", stored_tensors("llama") | bias)
    check_refused(tmp_path, path, "a Llama with biases is not supported")


# Token numbers of SmolLM2: "A piano plays a slow melody while rain falls on the roof of the old
# house."; the user's question "What is the capital of France?" in the model's chat format; and
# "The capital of France is Paris.<|im_end|>".
SENTENCE = "49 15717 4566 253 2890 23439 979 5249 8227 335 260 7344 282 260 1573 2291 30"
QUESTION = "1 4093 198 1780 314 260 3575 282 4649 47 2 198 1 520 9531 198"
ANSWER = "504 3575 282 4649 314 7042 30 2"


def ids(text: str) -> np.ndarray:
    return np.array([text.split()], np.int32)


def test_real_smollm2_knows_english() -> None:
    pytest.importorskip("gguf", reason='pip install "gac_jax[text]"')
    config, params = load_language_model(assets.smollm2())
    params = jax.tree.map(jnp.asarray, params)
    tokens = ids(SENTENCE)

    def perplexity(tokens: np.ndarray) -> float:
        log_p = jax.nn.log_softmax(logits_of(config, params, tokens)[0])
        return float(np.exp(-np.mean(log_p[np.arange(tokens.size - 1), tokens[0, 1:]])))

    assert perplexity(tokens) == pytest.approx(69.288, rel=1e-3)  # by transformers 5.23
    shuffled = np.random.default_rng(0).permutation(tokens, axis=1)
    assert perplexity(shuffled) > 10 * perplexity(tokens)

    prompt = ids(QUESTION)
    model = LanguageModel(config)
    inputs = model.apply({"params": params}, prompt, method="embed")
    answer = generate(model, params, inputs, jnp.ones(prompt.shape, bool), 10, (2,))
    np.testing.assert_array_equal(answer, ids(f"{ANSWER} 2 2"))
