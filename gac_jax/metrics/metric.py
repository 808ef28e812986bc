"""What every measure of decoded audio looks like to the code that runs them.

A `ClipMetric` gives numbers for one clip at a time. A `SetMetric` compares two collections: it
keeps a small description of each clip, and numbers come out at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from gac_jax.data.sources import Clip

SPEECH = frozenset({"speech"})
AUDIO = frozenset({"sound", "music", "other"})
ALL = SPEECH | AUDIO


@dataclasses.dataclass(frozen=True)
class Column:
    """One number of a table.

    Attributes:
      name: key in rows, such as "stoi".
      title: head of the column, unit included, such as "log-mel / dB".
      higher_is_better: None where neither end is.
      digits: behind the decimal point.
      weight: key of the row's weight in a mean, such as "words" for a corpus rate; "" weighs all
        clips alike.
    """

    name: str
    title: str
    higher_is_better: bool | None
    digits: int = 2
    weight: str = ""


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """A clip before and after a codec.

    Attributes:
      clip: what is known of it: domain, text, lang.
      reference: (S,) float32, mono at 32 kHz.
      decoded: (S,) float32, mono at 32 kHz.
    """

    clip: Clip
    reference: np.ndarray
    decoded: np.ndarray


class ClipMetric(Protocol):
    """Numbers of one clip."""

    columns: tuple[Column, ...]
    domains: frozenset[str]

    def measure(self, excerpt: Excerpt) -> dict[str, float]:
        """Values by column name, and by the names of weights; a value that has none is left out."""
        ...


class SetMetric(Protocol):
    """Numbers of a set of clips."""

    columns: tuple[Column, ...]
    domains: frozenset[str]

    def describe(self, wave: np.ndarray) -> dict[str, np.ndarray]:
        """Small arrays that stand for a clip, (S,) float32 at 32 kHz."""
        ...

    def compare(
        self,
        references: Sequence[Mapping[str, np.ndarray]],
        decoded: Sequence[Mapping[str, np.ndarray]],
    ) -> dict[str, float]:
        """Values by column name, from what describes each clip, in the same order; NaN for none."""
        ...


class Unavailable(Exception):
    """A metric that cannot be computed here: what is missing, and where its authors publish it."""
