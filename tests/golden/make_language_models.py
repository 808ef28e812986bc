"""Writes the tiny language models beside this file, and what transformers computes with them.

Run by hand, with PyTorch (CPU) and transformers installed; the tests read only its output:

    python tests/golden/make_language_models.py

The weights are random, those of norms and biases too, and large enough that attention is far from
uniform. Each folder holds a checkpoint as `save_pretrained` writes it, and expected.safetensors:
tokens (2, 24) int32 and the logits (2, 24, 96) float32 of the weights as stored. rope.json holds
what transformers divides rotary rates by for two kinds of `rope_scaling`.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

HERE = Path(__file__).parent
SIZES = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    bos_token_id=1,
    eos_token_id=2,
)
ROPE = {"rope_type": "default", "rope_theta": 100_000.0}
CONFIGS = {
    # As SmolLM2, but heads that together are wider than the model.
    "llama": LlamaConfig(
        **SIZES, head_dim=16, rms_norm_eps=1e-5, rope_parameters=ROPE, tie_word_embeddings=True
    ),
    "qwen2": Qwen2Config(
        **SIZES, rms_norm_eps=1e-6, rope_parameters=ROPE, tie_word_embeddings=False
    ),
}
DTYPES = {"llama": torch.bfloat16, "qwen2": torch.float16}
SHARD_SIZES = {"llama": "1GB", "qwen2": "25KB"}  # the second checkpoint comes in parts
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {  # two of the eight rates are on the ramp
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 16.0,
        "original_max_position_embeddings": 1024,
    },
}


def randomise(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape)
            if value.ndim == 2:
                noise *= 0.3 if "embed" in name else 1.5 * value.shape[1] ** -0.5
            elif name.endswith("bias"):
                noise *= 0.5
            else:
                noise = 1.0 + 0.3 * noise
            value.copy_(noise)


def write_model(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    randomise(model)
    model.to(DTYPES[name]).save_pretrained(folder, max_shard_size=SHARD_SIZES[name])
    (folder / "generation_config.json").unlink(missing_ok=True)
    stored = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = np.random.default_rng(seed).integers(0, 96, (2, 24)).astype(np.int32)
    with torch.no_grad():
        logits = stored(torch.from_numpy(tokens).long()).logits.numpy()
    save_file({"tokens": tokens, "logits": logits}, folder / "expected.safetensors")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size} bytes, logits of rms {np.sqrt(np.mean(logits**2)):.2f}")


def write_rope() -> None:
    plain = ROPE["rope_theta"] ** -(np.arange(8) / 8)
    rope = {}
    for kind, scaling in SCALINGS.items():
        config = LlamaConfig(**SIZES, head_dim=16, rope_parameters=ROPE | scaling)
        scaled = ROPE_INIT_FUNCTIONS[kind](config, "cpu")[0].numpy()
        divisors = [round(float(x), 5) for x in plain / scaled]
        rope[kind] = {"rope_parameters": ROPE | scaling, "divisors": divisors}
    (HERE / "rope.json").write_text(json.dumps(rope, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for seed, name in enumerate(CONFIGS):
        write_model(name, seed)
    write_rope()
