"""Capacity accounting of our systems: what `gac_jax.metrics.capacity` asks for, from a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gac_jax.bitstream import Tokens
from gac_jax.evaluation.summary import Contestant, Line
from gac_jax.evaluation.tables import present
from gac_jax.metrics.capacity import Point, predicted_bits, report
from gac_jax.rates import FRAME_RATE

DISTANCE = "log_mel_db"


def sections(systems: Sequence[Contestant], lines: Sequence[Line]) -> dict[str, str]:
    """A text for each domain by its heading; none where no system is ours."""
    by_title = {system.title: system for system in systems}
    ours = [line for line in lines if "decoder" in line.parameters]
    found = {}
    for domain in present(lines):
        points = [_point(by_title[line.system], line) for line in ours if line.domain == domain]
        if points:
            heading = f"Bits against parameters, {domain}: Eq. 1 to 3, distance {DISTANCE}"
            found[heading] = report(points)
    return found


def _point(system: Contestant, line: Line) -> Point:
    settings = system.folder.read_settings()["systems"][system.name]
    clips = [row["clip"] for row in system.rows if row["domain"] == line.domain]
    files = [path for clip in clips if (path := system.folder.bits(clip, system.name)).is_file()]
    codes = [Tokens.from_bytes(path.read_bytes()).codes for path in files]
    sizes = settings["codebooks"][: len(codes[0]) if codes else 0]
    return Point(
        name=line.system,
        rate=1000 * line.kbps,
        predicted=FRAME_RATE * float(predicted_bits((), codes, sizes).sum()) if codes else math.nan,
        parameters=line.parameters["decoder"],
        seconds=settings["trained_seconds"] or math.nan,
        distance=line.values[DISTANCE].mean if DISTANCE in line.values else math.nan,
    )
