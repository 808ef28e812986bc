"""A whole evaluation: what was asked for, run or taken from the folder, and told."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gac_jax import atomic
from gac_jax.data.sources import Source
from gac_jax.evaluation import exchange, figures, tables
from gac_jax.evaluation.clips import Reference, gather
from gac_jax.evaluation.folder import Folder, Ledger, write_rows
from gac_jax.evaluation.grid import measure, transmit
from gac_jax.evaluation.page import page
from gac_jax.evaluation.suite import Suite
from gac_jax.evaluation.summary import (
    Contestant,
    Line,
    check_clips,
    compare_sets,
    contestants,
    summarise,
)
from gac_jax.evaluation.systems import System


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is asked for.

    Attributes:
      source: of the clips.
      chosen: places in it by id.
      seconds: most of a clip to take.
      systems: to run.
      suite: metrics.
      folder: for results; what another run left there counts.
      others: folders of runs on the same clips, whose systems are shown too.
      workers: clips at a time.
      shown: clips of each domain to play and draw in the report.
    """

    source: Source
    chosen: dict[str, int]
    seconds: float
    systems: Sequence[System]
    suite: Suite
    folder: Folder
    others: Sequence[Folder]
    workers: int
    shown: int


def run(evaluation: Evaluation) -> list[Line]:
    """Does all that is not done yet, writes tables, figures and the report, and returns the lines.

    Raises:
      UserError: the folder holds other clips or settings, another run took other clips, or no clip
        can be read.
    """
    e, folder = evaluation, evaluation.folder
    settings = {system.name: dict(system.settings) for system in e.systems}
    folder.agree(clips={"seconds": e.seconds}, systems=settings, metrics=e.suite.files)
    references = gather(e.source, e.chosen, e.seconds, folder)
    check_clips(e.others, references)
    with Ledger(folder.rows) as ledger:
        transmit(e.systems, references, folder, ledger, e.workers)
        measure(e.suite, references, folder, ledger, e.workers)
    write_rows(folder.sets, compare_sets(e.suite, references, folder, ledger))
    systems = contestants(folder, e.others, references, list(settings))
    lines = summarise(systems, e.suite.shown())
    _publish(e, references, systems, lines)
    return lines


def _publish(
    e: Evaluation,
    references: Sequence[Reference],
    systems: Sequence[Contestant],
    lines: Sequence[Line],
) -> None:
    """Writes table.md, table.csv, the figures and report.html."""
    path = e.folder.path
    title = f"{len(systems)} systems on {len(references)} clips of at most {e.seconds:g} s"
    drawn = {}
    for name, figure, caption in figures.draw(e.suite, lines):
        drawn[caption] = figures.png(figure)
        atomic.write(path / f"{name}.png", drawn[caption])
        atomic.write(path / f"{name}.svg", figures.svg(figure))
    texts = exchange.sections(systems, lines)
    tail = "".join(f"\n## {head}\n\n{text}\n" for head, text in texts.items())
    table = f"# {title}\n\n{tables.markdown(e.suite, lines)}{tail}"
    atomic.write(path / "table.md", table.encode())
    atomic.write(path / "table.csv", tables.to_csv(e.suite, lines))
    shown = [r for r in references if int(r.id.rpartition("-")[2]) < e.shown]
    html = page(title, e.suite, lines, drawn, texts, shown, systems)
    atomic.write(path / "report.html", html.encode())
