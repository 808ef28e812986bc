"""Which metrics a run computes, and why it leaves out the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gac_jax.errors import UserError
from gac_jax.metrics.aesthetics import Aesthetics
from gac_jax.metrics.embeddings import Passt, WhisperFeatures
from gac_jax.metrics.intelligibility import Pesq, Stoi
from gac_jax.metrics.metric import SPEECH, ClipMetric, Column, SetMetric, Unavailable
from gac_jax.metrics.opinion import Dnsmos, Mos, Nisqa
from gac_jax.metrics.recognition import Recognition
from gac_jax.metrics.signal import Signal
from gac_jax.metrics.speaker import SpeakerSimilarity

MOS = "mos"  # stands for the two whose mean it has
ALL = "all"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A metric that there is.

    Attributes:
      load: makes it, of the path that the user gave for its weights if it has any.
      columns: that stay blank where it cannot be made.
      domains: likewise.
      file: the flag with that path; "" if it needs none.
    """

    load: Callable[..., Any]
    columns: tuple[Column, ...]
    domains: frozenset[str]
    file: str = ""


def _entry(kind: Any, file: str = "") -> Entry:
    return Entry(kind.load, kind.columns, kind.domains, file)


def _speaker(load: Callable[..., Any], name: str, title: str, file: str = "") -> Entry:
    return Entry(load, (Column(name, title, True, 3),), SPEECH, file)


METRICS = {  # in the order of columns
    "wer": _entry(Recognition, "recogniser"),
    "sim": _speaker(SpeakerSimilarity.load_wespeaker, "sim", "SIM", "speaker"),
    "sim_resemblyzer": _speaker(
        SpeakerSimilarity.load_resemblyzer, "sim_resemblyzer", "SIM (Resemblyzer)"
    ),
    "dnsmos": _entry(Dnsmos),
    "nisqa": _entry(Nisqa, "nisqa"),
    "stoi": _entry(Stoi),
    "pesq": _entry(Pesq),
    "passt": _entry(Passt, "passt"),
    "whisper": _entry(WhisperFeatures),
    "aesthetics": _entry(Aesthetics, "aesthetics"),
    "signal": Entry(Signal, Signal.columns, Signal.domains),
}
FILES = tuple(entry.file for entry in METRICS.values() if entry.file)


@dataclasses.dataclass
class Suite:
    """Metrics ready to use.

    Attributes:
      of_clips: by name.
      of_sets: by name.
      missing: by name, why a metric is left out.
      columns: by name, and the domains in which they are shown; those of missing metrics too.
      files: by name, the path of the weights of a metric that has some.
    """

    of_clips: dict[str, ClipMetric] = dataclasses.field(default_factory=dict)
    of_sets: dict[str, SetMetric] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    columns: dict[str, tuple[tuple[Column, ...], frozenset[str]]] = dataclasses.field(
        default_factory=dict
    )
    files: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, name: str, metric: Any) -> None:
        """Takes a metric in."""
        kind: dict[str, Any] = self.of_sets if hasattr(metric, "describe") else self.of_clips
        kind[name] = metric
        self.columns[name] = metric.columns, metric.domains

    def leave_out(self, name: str, entry: Entry, reason: str) -> None:
        """Notes that a metric is missing."""
        self.missing[name] = reason
        self.columns[name] = entry.columns, entry.domains

    def shown(self, domain: str = "") -> list[Column]:
        """Columns of a domain, or of all."""
        return [
            column
            for columns, domains in self.columns.values()
            for column in columns
            if not domain or domain in domains
        ]


def load(names: Sequence[str], files: Mapping[str, str]) -> Suite:
    """Makes metrics ready.

    Args:
      names: keys of `METRICS`, or `ALL`.
      files: by each of `FILES`, the path of weights; "" where there are none.

    Raises:
      UserError: an unknown name, or a file that is not what a metric needs.
    """
    for name in names:
        if name not in METRICS and name != ALL:
            raise UserError(f"--metrics: {name!r} is none of {ALL}, {', '.join(METRICS)}")
    wanted = [name for name in METRICS if name in names or ALL in names]
    made: dict[str, Any] = {}
    reasons = {}
    for name in wanted:
        entry = METRICS[name]
        try:
            made[name] = entry.load(*([files[entry.file]] if entry.file else []))
        except Unavailable as reason:
            reasons[name] = str(reason)
    suite = Suite(files={name: files[METRICS[name].file] for name in made if METRICS[name].file})
    if {"dnsmos", "nisqa"} <= set(made):
        made[MOS] = Mos(made.pop("dnsmos"), made.pop("nisqa"))
    for name in (MOS, *METRICS):
        if name in made:
            suite.add(name, made[name])
        elif name in reasons:
            suite.leave_out(name, METRICS[name], reasons[name])
    return suite
