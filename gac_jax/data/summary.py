"""How much audio there is to train on, of which kinds and on which terms."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping

from ml_collections import ConfigDict

from gac_jax.data.pipeline import split
from gac_jax.data.sources import Clip, column, open_source
from gac_jax.data.transforms import UNREADABLE

MAX_OPENED = 10_000  # clips opened for their length where the source does not know it


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the training clips amount to.

    Attributes:
      clips: number of clips of each domain, the most frequent first.
      seconds: length of each domain; None if too many clips would have to be opened for it.
      licences: number of clips under each licence, the most frequent first.
      held_out: number of clips that are not trained on.
    """

    clips: Mapping[str, int]
    seconds: Mapping[str, float] | None
    licences: Mapping[str, int]
    held_out: int

    def __str__(self) -> str:
        """For example: 3 clips, 17.3 s (1 music, 1 sound, 1 speech)."""
        domains = ", ".join(f"{count:,} {domain}" for domain, count in self.clips.items())
        return f"{sum(self.clips.values()):,} clips, {self.length()} ({domains})"

    def length(self, domain: str | None = None) -> str:
        """Length of a domain, or of all, in words."""
        if self.seconds is None:
            return "hours not known"
        return duration(sum(self.seconds.values()) if domain is None else self.seconds[domain])


def summarise(data: ConfigDict) -> Summary:
    """Counts the clips that `gac_jax.data.pipeline.train_batches` draws from.

    Clips whose source does not know their length are opened for it, as long as they are at most
    `MAX_OPENED`; one that cannot be read has none.

    Args:
      data: root, domain_weights and validation_percent.

    Raises:
      UserError: if the root cannot be read.
    """
    source = open_source(data.root)
    training, held_out = split(source.clips, data.validation_percent)
    domains, lengths, licences = (
        column(source.clips, name) for name in ("domain", "dur_s", "licence")
    )
    drawn = [index for index in training if data.domain_weights.get(domains[index])]
    unknown = [index for index in drawn if not lengths[index]]
    seconds: dict[str, float] | None = None
    if len(unknown) <= MAX_OPENED:
        found = {index: _seconds(source[index]) for index in unknown}
        seconds = dict.fromkeys((domains[index] for index in drawn), 0.0)
        for index in drawn:
            seconds[domains[index]] += lengths[index] or found[index]
    return Summary(
        clips=_counted(domains[index] for index in drawn),
        seconds=seconds,
        licences=_counted(licences[index] or "not stated" for index in drawn),
        held_out=len(held_out),
    )


def duration(seconds: float) -> str:
    """17.3 s, 5.2 min or 7.9 h."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def _seconds(clip: Clip) -> float:
    try:
        with clip.open() as file:
            return file.frames / file.samplerate
    except UNREADABLE:
        return 0.0


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())
