"""What a run measured: a table for people and JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = ("file", "seconds", "bytes", "kbps", "encode RTF", "decode RTF")


@dataclasses.dataclass(frozen=True)
class Row:
    """Figures of one file.

    Attributes:
      file: name, or 'total'.
      seconds: playing time.
      bytes: size of the .gac file.
      encode_rtf: real-time factor, computing time over playing time; None if not encoded.
      decode_rtf: likewise for decoding.
      clipped: decoded samples beyond full scale.
    """

    file: str
    seconds: float
    bytes: int
    encode_rtf: float | None
    decode_rtf: float | None
    clipped: int

    @property
    def kbps(self) -> float:
        """Rate measured from the file's bytes, container included."""
        return self.bytes * 8 / self.seconds / 1000


def total(rows: Sequence[Row]) -> Row:
    """Sums; real-time factors are those of all files together."""
    seconds = sum(row.seconds for row in rows)

    def rtf(factors: Sequence[float | None]) -> float | None:
        spent = [f * row.seconds for f, row in zip(factors, rows, strict=True) if f is not None]
        return sum(spent) / seconds if spent else None

    return Row(
        file="total",
        seconds=seconds,
        bytes=sum(row.bytes for row in rows),
        encode_rtf=rtf([row.encode_rtf for row in rows]),
        decode_rtf=rtf([row.decode_rtf for row in rows]),
        clipped=sum(row.clipped for row in rows),
    )


def table(rows: Sequence[Row]) -> str:
    """The rows and their total in aligned columns."""
    lines = [COLUMNS, *(_cells(row) for row in [*rows, total(rows)])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def notes(rows: Sequence[Row], loading: float, compiling: float) -> str:
    """What to know when reading the table: what is in a real-time factor, and clipping."""
    lines = [
        "RTF is computing time over playing time, files read and written included; loading the "
        f"model ({loading:.1f} s) and compiling ({compiling:.1f} s) come once and are not in it."
    ]
    lines += [f"{row.file}: {row.clipped} samples clipped" for row in rows if row.clipped]
    return "\n".join(lines)


def to_json(rows: Sequence[Row], **facts: Any) -> bytes:
    """The same figures, and facts about the run, as a JSON file."""
    record: Mapping[str, Any] = {
        **facts,
        "files": [_record(row) for row in rows],
        "total": _record(total(rows)) if rows else None,
    }
    return json.dumps(record, indent=2).encode() + b"\n"


def _record(row: Row) -> dict[str, Any]:
    return {**dataclasses.asdict(row), "kbps": row.kbps}


def _cells(row: Row) -> tuple[str, ...]:
    factors = ("-" if f is None else f"{f:.3f}" for f in (row.encode_rtf, row.decode_rtf))
    return (row.file, f"{row.seconds:.2f}", str(row.bytes), f"{row.kbps:.3f}", *factors)
