"""What a run keeps on disk, so that it goes on where it was stopped.

| file | holds |
|---|---|
| settings.json | what the results depend on |
| clips.jsonl | the clips |
| clips/ID/reference.wav | the original |
| clips/ID/SYSTEM.bits | what a system sent of it |
| clips/ID/SYSTEM.wav | what it made of that |
| clips/ID/SYSTEM.METRIC.npz | what a metric of sets keeps of either audio |
| metrics.jsonl | a row for each system and clip |
| sets.jsonl | a row for each system and domain: metrics of sets |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from gac_jax import atomic
from gac_jax.errors import UserError

Row = dict[str, Any]
ELSEWHERE = "give --output a new folder"


class Folder:
    """The paths.

    Attributes:
      path: of the folder itself.
    """

    def __init__(self, path: Path) -> None:
        """Names a folder, which need not exist yet."""
        self.path = path
        self.settings, self.clips = path / "settings.json", path / "clips.jsonl"
        self.rows, self.sets = path / "metrics.jsonl", path / "sets.jsonl"

    def wave(self, clip: str, system: str = "reference") -> Path:
        """Audio of a clip: the original, or what a system made of it."""
        return self.path / "clips" / clip / f"{system}.wav"

    def bits(self, clip: str, system: str) -> Path:
        """What a system sent of a clip."""
        return self.path / "clips" / clip / f"{system}.bits"

    def description(self, clip: str, metric: str, system: str = "reference") -> Path:
        """What a metric of sets keeps of that audio."""
        return self.path / "clips" / clip / f"{system}.{metric}.npz"

    def forget(self, clip: str, system: str) -> None:
        """Removes descriptions of audio that is about to be replaced."""
        for path in self.wave(clip).parent.glob(f"{system}.*.npz"):
            path.unlink()

    def read_settings(self) -> dict[str, Any]:
        """What `agree` wrote; empty before it did."""
        return json.loads(self.settings.read_text()) if self.settings.is_file() else {}

    def agree(self, **settings: Mapping[str, Any]) -> None:
        """Adds to the settings, unless results with others are there.

        Args:
          **settings: by section, then by name, as JSON has them.

        Raises:
          UserError: names the first setting that differs.
        """
        known = self.read_settings()
        for section, entries in settings.items():
            for name, value in entries.items():
                before = known.setdefault(section, {}).setdefault(name, value)
                if before != value:
                    raise UserError(
                        f"{self.settings}: {section} {name} was {json.dumps(before)} and is now "
                        f"{json.dumps(value)}: {ELSEWHERE}"
                    )
        atomic.write(self.settings, json.dumps(known, indent=2).encode() + b"\n")


class Ledger:
    """The rows of metrics.jsonl: kept as they come, a line each, the last one of a key counts.

    Attributes:
      rows: by system and clip.
    """

    def __init__(self, path: Path) -> None:
        """Reads the rows that are there.

        Raises:
          UserError: the file is damaged, other than by a stop in the middle of its last line.
        """
        self._path = path
        self.rows: dict[tuple[str, str], Row] = {}
        for row in read_rows(path):
            self.rows[row["system"], row["clip"]] = row

    def __enter__(self) -> Ledger:
        """Opens the file; it begins with one line for each row."""
        write_rows(self._path, list(self.rows.values()))
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the file; again it has one line for each row."""
        self._file.close()
        write_rows(self._path, list(self.rows.values()))

    def add(self, row: Row) -> None:
        """Keeps a row, in place of one of the same system and clip."""
        self._file.write(_line(row))
        self._file.flush()
        self.rows[row["system"], row["clip"]] = row


def read_rows(path: Path) -> list[Row]:
    """The lines of a JSON lines file, but for a last one that was not written to its end.

    Raises:
      UserError: another line is damaged.
    """
    if not path.is_file():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path} line {number}: damaged; {ELSEWHERE}") from error
    return rows


def write_rows(path: Path, rows: list[Row]) -> None:
    """Writes a JSON lines file."""
    atomic.write(path, "".join(map(_line, rows)).encode())


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
