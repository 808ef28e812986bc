"""From rows of single clips to one line for each domain and system."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from gac_jax.data.sources import DOMAINS
from gac_jax.errors import UserError
from gac_jax.evaluation.clips import Reference, read_references
from gac_jax.evaluation.folder import Folder, Ledger, Row, read_rows
from gac_jax.evaluation.suite import Suite
from gac_jax.evaluation.systems import REFERENCE
from gac_jax.metrics.bootstrap import interval
from gac_jax.metrics.metric import Column, SetMetric

NOTHING = float("nan")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number and how far it could be off for want of clips.

    Attributes:
      mean: over clips, or the number of a set of clips; NaN where there is none.
      low: end of the 95 % bootstrap interval; NaN for numbers of sets and of single clips.
      high: the other end.
      clips: that have the number; 0 for one of a set.
    """

    mean: float = NOTHING
    low: float = NOTHING
    high: float = NOTHING
    clips: int = 0


@dataclasses.dataclass(frozen=True)
class Line:
    """What is known of a system in a domain.

    Attributes:
      domain: one of `DOMAINS`.
      system: name.
      clips: that went through.
      failed: that did not.
      kbps: bits of all clips over their playing time.
      encode_rtf: real-time factor, computing time over playing time.
      decode_rtf: likewise.
      parameters: by part of the system; empty where it has no networks.
      values: by column.
    """

    domain: str
    system: str
    clips: int
    failed: int
    kbps: float
    encode_rtf: float
    decode_rtf: float
    parameters: Mapping[str, int]
    values: Mapping[str, Estimate]

    def value(self, column: Column) -> Estimate:
        """Of a column; NaN where there is none."""
        return self.values.get(column.name, Estimate())


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A system with what a run found of it.

    Attributes:
      title: its name in tables and figures.
      name: its name in the folder.
      folder: of the run.
      rows: of its clips, as in metrics.jsonl.
      of_sets: numbers of sets of clips by domain.
    """

    title: str
    name: str
    folder: Folder
    rows: Sequence[Row]
    of_sets: Mapping[str, Mapping[str, float]]


def compare_sets(
    suite: Suite, references: Sequence[Reference], folder: Folder, ledger: Ledger
) -> list[Row]:
    """Numbers of every metric of sets, a row for each system and domain."""
    rows = []
    for system in dict.fromkeys(system for system, _ in ledger.rows):
        for domain in DOMAINS:
            ids = [r.id for r in references if r.clip.domain == domain]
            values: dict[str, float] = {}
            for name, metric in suite.of_sets.items():
                if domain in metric.domains:
                    values |= _compare(name, metric, system, ids, folder)
            if values:
                rows.append({"system": system, "domain": domain, "values": values})
    return rows


def check_clips(others: Sequence[Folder], references: Sequence[Reference]) -> None:
    """Checks that other runs took the same clips.

    Raises:
      UserError: names the first that did not.
    """
    for folder in others:
        there = read_references(folder).values()
        if _clips(there) != _clips(references):
            raise UserError(f"{folder.clips}: missing, or not the clips of this run; leave it out")


def contestants(
    folder: Folder, others: Sequence[Folder], references: Sequence[Reference], first: Sequence[str]
) -> list[Contestant]:
    """All systems that a run and others on the same clips have tried.

    Args:
      folder: of the run.
      others: of other runs; a system whose name is taken gets its folder's name before its own.
      references: the clips.
      first: names of systems in the order in which they come; those of earlier runs follow.
    """
    ids = {r.id for r in references}
    found: dict[str, Contestant] = {}
    for place in (folder, *others):
        rows = [row for row in Ledger(place.rows).rows.values() if row["clip"] in ids]
        names = dict.fromkeys([*(first if place is folder else ()), *(r["system"] for r in rows)])
        of_sets = read_rows(place.sets)
        for name in names:
            title = f"{place.path.resolve().name}/{name}" if name in found else name
            found[title] = Contestant(
                title,
                name,
                place,
                [row for row in rows if row["system"] == name],
                {row["domain"]: row["values"] for row in of_sets if row["system"] == name},
            )
    return list(found.values())


def summarise(systems: Sequence[Contestant], columns: Sequence[Column]) -> list[Line]:
    """A line for each domain, and in it for each system that has clips there.

    Args:
      systems: in order.
      columns: to average.
    """
    lines = []
    for domain in DOMAINS:
        for system in systems:
            rows = [row for row in system.rows if row["domain"] == domain]
            if rows:
                of_set = system.of_sets.get(domain, {})
                lines.append(_line(domain, system.title, rows, of_set, columns))
    return lines


def _clips(references: Iterable[Reference]) -> set[tuple[str, str, float]]:
    return {(r.id, r.clip.path, r.seconds) for r in references}


def _compare(
    name: str, metric: SetMetric, system: str, ids: Sequence[str], folder: Folder
) -> dict[str, float]:
    pairs = []
    for id_ in ids:
        paths = [folder.description(id_, name, of) for of in (REFERENCE, system)]
        if all(path.is_file() for path in paths):
            pairs.append([_description(path) for path in paths])
    if not pairs:
        return {}
    values = metric.compare([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    return {key: value for key, value in values.items() if math.isfinite(value)}


def _description(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _line(
    domain: str,
    system: str,
    rows: Sequence[Row],
    of_set: Mapping[str, float],
    columns: Sequence[Column],
) -> Line:
    sent = [row for row in rows if "error" not in row]
    seconds = sum(row["seconds"] for row in sent) or NOTHING
    values = {column.name: _estimate(sent, column) for column in columns}
    values |= {name: Estimate(value) for name, value in of_set.items()}
    return Line(
        domain=domain,
        system=system,
        clips=len(sent),
        failed=len(rows) - len(sent),
        kbps=8e-3 * sum(row["bytes"] for row in sent) / seconds,
        encode_rtf=sum(row["encode_seconds"] for row in sent) / seconds,
        decode_rtf=sum(row["decode_seconds"] for row in sent) / seconds,
        parameters=sent[0]["parameters"] if sent else {},
        values={name: e for name, e in values.items() if not math.isnan(e.mean)},
    )


def _estimate(rows: Sequence[Row], column: Column) -> Estimate:
    """Mean over the clips that have a value, by weight if the column has one."""
    found = [row["values"] for row in rows if column.name in row["values"]]
    if not found:
        return Estimate()
    values = np.array([value[column.name] for value in found])
    weights = np.array([value[column.weight] for value in found]) if column.weight else None
    low, high = interval(values, weights=weights)
    return Estimate(float(np.average(values, weights=weights)), low, high, len(found))
