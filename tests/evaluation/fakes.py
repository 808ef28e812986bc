"""Clips, systems and metrics that take no time."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

from gac_jax.data.sources import Clip, FileSource
from gac_jax.evaluation.clips import Reference, choose, gather
from gac_jax.evaluation.folder import Folder
from gac_jax.evaluation.suite import Suite
from gac_jax.metrics.metric import ALL, AUDIO, SPEECH, Column, Excerpt


def source(folder: Path, **counts: int) -> FileSource:
    """Noises of 0.1 s and more, such as speech=2; those of speech have a text."""
    clips = []
    for domain, count in counts.items():
        for index in range(count):
            path = folder / domain / f"{index}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(len(clips))
            soundfile.write(path, 0.1 * rng.standard_normal(3_200 + 320 * index), 32_000)
            text = f"text {index}" if domain == "speech" else ""
            clips.append(Clip(f"{domain}/{index}.wav", domain, text, audio=str(path)))
    return FileSource(clips)


def references(folder: Folder, **counts: int) -> list[Reference]:
    """The same in the folder of a run."""
    clips = source(folder.path / "source", **counts)
    return gather(clips, choose(clips.clips, "all", 0.0, 0), 10.0, folder)


class Amplifier:
    """Sends samples as they are and decodes them louder; a clip it is told to refuse fails."""

    concurrent = True

    def __init__(self, name: str, gain: float = 1.0, refused: Sequence[int] = ()) -> None:
        self.name, self.gain, self.refused = name, gain, refused
        self.parameters: Mapping[str, int] = {}
        self.settings = {"gain": gain}
        self.sent = 0

    def encode(self, wave: np.ndarray) -> bytes:
        self.sent += 1
        if len(wave) in self.refused:
            raise ValueError(f"not\nclips of {len(wave)} samples")
        return wave.astype("<f4").tobytes()

    def decode(self, data: bytes, num_samples: int) -> np.ndarray:
        return self.gain * np.frombuffer(data, "<f4")


class Difference:
    """Mean difference, and how many words a text has as its weight."""

    columns = (
        Column("difference", "difference", False, 3),
        Column("weighted", "weighted <&>", False, 3, "words"),
        Column("level", "level", None),
    )
    domains = ALL

    def __init__(self) -> None:
        self.measured = 0

    def measure(self, excerpt: Excerpt) -> dict[str, float]:
        self.measured += 1
        difference = float(np.mean(np.abs(excerpt.decoded - excerpt.reference)))
        words = len(excerpt.clip.text.split()) or 1
        return {"difference": difference, "weighted": difference, "words": words, "nan": np.nan}


class Moment:
    """Difference of the mean powers of two sets."""

    columns = (Column("moment", "moment", False, 4),)
    domains = AUDIO

    def __init__(self) -> None:
        self.described = 0

    def describe(self, wave: np.ndarray) -> dict[str, np.ndarray]:
        self.described += 1
        return {"power": np.mean(np.square(wave))[None]}

    def compare(
        self,
        references: Sequence[Mapping[str, np.ndarray]],
        decoded: Sequence[Mapping[str, np.ndarray]],
    ) -> dict[str, float]:
        a, b = (np.mean([d["power"] for d in side]) for side in (references, decoded))
        return {"moment": float(abs(a - b)), "infinite": float("inf")}


def suite() -> Suite:
    """Both metrics, and one of speech that is missing."""
    made = Suite()
    made.add("difference", Difference())
    made.add("moment", Moment())
    made.columns["ear"] = (Column("ear", "Ear", True), Column("ear2", "Ear 2", True)), SPEECH
    made.missing["ear"] = "needs an ear <of wax>"
    return made
