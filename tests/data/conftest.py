"""Synthetic corpora for the tests of the data package."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from gac_jax.data.text import TextTargets, load_tokenizer

WriteClip = Callable[..., Path]

TEXT = (
    "Transcribe the speech. Describe the sound. system user assistant. The rain in the street, "
    "a dog barks, the speech of a dog, the sound of the rain: it rains, and it doesn't stop. "
) * 5


@pytest.fixture
def write_clip(tmp_path: Path) -> WriteClip:
    """write_clip(name, seconds, rate, channels): noise with a level of its own, below tmp_path."""

    def write(name: str, seconds: float = 0.2, rate: int = 32_000, channels: int = 1) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(sum(name.encode()))
        noise = 0.1 * rng.standard_normal((round(seconds * rate), channels))
        # libsndfile knows Opus as a kind of Ogg, not as a suffix.
        kind = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
        soundfile.write(path, np.clip(noise, -0.99, 0.99), rate, **kind)
        return path

    return write


@pytest.fixture
def corpus(tmp_path: Path, write_clip: WriteClip) -> Path:
    """A manifest of 12 speech clips by 6 speakers, 6 sounds and 5 pieces of music."""
    rows = ["path,domain,speaker,text,dur_s"]
    for domain, count in (("speech", 12), ("sound", 6), ("music", 5)):
        for index in range(count):
            name = f"{domain}/{index:02d}.wav"
            write_clip(name, 0.05 + 0.03 * index)
            speaker = f"voice {index // 2}" if domain == "speech" else ""
            rows.append(f"{name},{domain},{speaker},,{0.05 + 0.03 * index:.2f}")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("\n".join(rows), encoding="utf-8")
    return manifest


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json as SmolLM2 has it, with 320 tokens."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level])
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator([TEXT], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    model.save(str(path))
    return path


@pytest.fixture
def targets(tokenizer_json: Path) -> TextTargets:
    """Texts of 64 tokens in ChatML."""
    return TextTargets(load_tokenizer(tokenizer_json), "chatml", 64)
