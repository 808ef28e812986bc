"""Table 1: a line for each system, a table for each domain, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence

from gac_jax.data.sources import DOMAINS
from gac_jax.evaluation.suite import Suite
from gac_jax.evaluation.summary import Estimate, Line
from gac_jax.metrics.bootstrap import LEVEL
from gac_jax.metrics.findings import table
from gac_jax.metrics.metric import Column

DASH = "-"
HEADS = ("system", "clips", "kbps", "parameters", "encode RTF", "decode RTF")
RULES = (
    f"± is half of the {100 * LEVEL:.0f} % bootstrap interval over clips; numbers of sets of clips "
    "have none. In brackets: clips that have the number, where not all do.",
    "kbps counts the bytes of coded files, their headers included.",
    "RTF is computing time over playing time on this machine, starting programs and reading files "
    "included, loading and compiling models not.",
)


def columns_of(suite: Suite, lines: Sequence[Line], domain: str) -> list[Column]:
    """Columns of a domain's table: all but those of metrics that have no number for any system.

    Of a metric that could not be computed one column stays, blank: it is missing, not meaningless.
    """
    blank = {suite.columns[name][0][0] for name in suite.missing}
    of_domain = [line for line in lines if line.domain == domain]
    return [
        column
        for column in suite.shown(domain)
        if column in blank or any(column.name in line.values for line in of_domain)
    ]


def markdown(suite: Suite, lines: Sequence[Line]) -> str:
    """A table for each domain that has clips, and below them what to know when reading."""
    parts = []
    for domain in present(lines):
        columns = columns_of(suite, lines, domain)
        rows = [cells(line, columns) for line in lines if line.domain == domain]
        heads = [*HEADS, *(head(column) for column in columns)]
        parts.append(f"## {domain}\n\n{table(heads, rows, words=1)}")
    parts.append("\n".join(f"- {note}" for note in notes(suite, lines)))
    return "\n\n".join(parts) + "\n"


def to_csv(suite: Suite, lines: Sequence[Line]) -> bytes:
    """All lines in one table, with both ends of every interval; what is not known is empty."""
    shown = [column for domain in present(lines) for column in columns_of(suite, lines, domain)]
    columns = list(dict.fromkeys(shown))
    fixed = [
        "domain",
        "system",
        "clips",
        "failed",
        "kbps",
        "parameters",
        "encode_rtf",
        "decode_rtf",
    ]
    ends = [f"{column.name}{end}" for column in columns for end in ("", "_low", "_high", "_clips")]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*fixed, *ends])
    for line in lines:
        rates = [_plain(x) for x in (line.kbps, line.encode_rtf, line.decode_rtf)]
        size = sum(line.parameters.values()) or ""
        values = [line.value(column) for column in columns]
        numbers = [x for value in values for x in _ends(value)]
        counts = [line.domain, line.system, line.clips, line.failed]
        writer.writerow([*counts, rates[0], size, *rates[1:], *numbers])
    return buffer.getvalue().encode()


def present(lines: Sequence[Line]) -> list[str]:
    """Domains that have clips, in order."""
    return [domain for domain in DOMAINS if any(line.domain == domain for line in lines)]


def head(column: Column) -> str:
    """A column's title, with an arrow that points to better."""
    if column.higher_is_better is None:
        return column.title
    return f"{column.title}\N{NO-BREAK SPACE}{'↑' if column.higher_is_better else '↓'}"


def cells(line: Line, columns: Sequence[Column]) -> list[str]:
    """A line of a table."""
    return [
        line.system,
        f"{line.clips}" + (f" ({line.failed} failed)" if line.failed else ""),
        _figure(line.kbps, 3),
        millions(line.parameters),
        _figure(line.encode_rtf, 3),
        _figure(line.decode_rtf, 3),
        *(cell(line.value(column), column.digits, line.clips) for column in columns),
    ]


def cell(estimate: Estimate, digits: int, clips: int) -> str:
    """A number with half of its interval, or a dash; and how many of the clips have it, if few."""
    half = (estimate.high - estimate.low) / 2
    spread = "" if math.isnan(half) else f" ± {half:.{digits}f}"
    count = f" ({estimate.clips})" if 0 < estimate.clips < clips else ""
    return _figure(estimate.mean, digits) + spread + count


def millions(parameters: Mapping[str, int]) -> str:
    """Parameters of all parts, or a dash where there are none."""
    return f"{sum(parameters.values()) / 1e6:.1f} M" if parameters else DASH


def notes(suite: Suite, lines: Sequence[Line]) -> list[str]:
    """What to know when reading: the rules, what was not computed and why, and what failed."""
    missing = [f"{name} was not computed: {reason}." for name, reason in suite.missing.items()]
    failures = [
        f"{line.system} failed at {line.failed} of {line.clips + line.failed} clips of "
        f"{line.domain}; metrics.jsonl has the errors."
        for line in lines
        if line.failed
    ]
    return [*RULES, *missing, *failures]


def _figure(value: float, digits: int) -> str:
    return DASH if math.isnan(value) else f"{value:.{digits}f}"


def _ends(estimate: Estimate) -> list[str | int]:
    bounds = [_plain(x) for x in (estimate.mean, estimate.low, estimate.high)]
    return [*bounds, estimate.clips or ""]


def _plain(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
