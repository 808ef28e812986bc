"""Synthetic corpora for the tests of the data package."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

WriteClip = Callable[..., Path]


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
