"""A language model, clips with texts, and a configuration of stage 1 that trains on both."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import soundfile
import tokenizers
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers, trainers

from tests import config as both_stages
from tests import tiny

LLAMA = Path(__file__).parent / "golden" / "llama"
VOCABULARY = 300  # 256 bytes, three special tokens and some pairs

# (path, domain, seconds, speaker's language, text, label); a crop has 0.32 s.
CLIPS = (
    ("speech/0.wav", "speech", 0.31, "en", "The rain, in the street", ""),
    ("speech/1.wav", "speech", 0.20, "en", "A dog barks", ""),
    ("speech/2.wav", "speech", 0.25, "de", "Es regnet", ""),
    ("speech/3.wav", "speech", 0.70, "en", "Longer than a crop", ""),
    ("speech/4.wav", "speech", 0.15, "en", "", ""),
    ("sound/0.wav", "sound", 0.20, "", "", "dog bark"),
    ("sound/1.wav", "sound", 0.99, "", "", "rain"),
    ("sound/2.wav", "sound", 0.30, "", "it stops", "door"),
    ("music/0.wav", "music", 0.40, "", "", "slow piano"),
)


def write_corpus(folder: Path) -> Path:
    """Writes noise for each of `CLIPS`, and the manifest, whose path is returned."""
    rows = ["path,domain,dur_s,lang,text,label"]
    for number, (path, domain, seconds, lang, text, label) in enumerate(CLIPS):
        rng = np.random.default_rng(number)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(
            folder / path, 0.1 * rng.standard_normal(round(32_000 * seconds)), 32_000, "FLOAT"
        )
        rows.append(f'{path},{domain},{seconds},{lang},"{text}",{label}')
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return manifest


def write_language_model(folder: Path) -> Path:
    """Writes a random Llama with `VOCABULARY` tokens and its tokenizer; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((LLAMA / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] = VOCABULARY
    stored = load_file(LLAMA / "model.safetensors")
    tensors = {name: x.astype(np.float32) for name, x in stored.items()}
    (words,) = (name for name in tensors if "embed_tokens" in name)
    noise = np.random.default_rng(0).standard_normal((VOCABULARY, config["hidden_size"]))
    tensors[words] = noise.astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def get_config(folder: Path) -> ConfigDict:
    """Two steps of understanding on a corpus and with a language model, both below `folder`."""
    config = both_stages.get_config()
    config.stages = ("understanding",)
    config.understanding.update(steps=2, eval_every=100)
    config.quantizer = ConfigDict(dataclasses.asdict(tiny.QUANTIZER))
    config.understanding.objective.weights.update(text=1.0, alignment=1.0)
    config.data.update(root=str(folder / "corpus" / "manifest.csv"), validation_percent=0.0)
    config.understanding.objective.text_after = 0
    config.language_model.update(path=str(folder / "language_model"), max_tokens=48)
    return config


def _tokenizer() -> tokenizers.Tokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer, model.decoder = byte_level, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    text = "Transcribe the speech. Describe the sound. system user assistant. You put into words. "
    model.train_from_iterator([text * 5], trainer)
    return model
