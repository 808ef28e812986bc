"""Where clips come from: folders, manifests, packed data sets, or several of them as one.

A source lists its clips without opening any audio; `source[i].open()` opens one.
"""

from __future__ import annotations

import bisect
import csv
import dataclasses
import functools
import io
import itertools
import json
import os
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, overload

import soundfile

from gac_jax.errors import UserError

DOMAINS = ("speech", "sound", "music", "other")
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff"})


@dataclasses.dataclass(frozen=True)
class Clip:
    """One recording and what is known about it; "" and 0 stand for unknown.

    Attributes:
      path: file name relative to its source, with forward slashes; names the clip in messages.
      domain: one of `DOMAINS`.
      text: what is said.
      label: what is heard.
      speaker: who speaks.
      lang: language of the speech.
      licence: terms of the recording.
      source: collection it comes from.
      native_sr: sample rate of the original recording in Hz.
      bw_hz: highest frequency with energy in Hz.
      dur_s: length in seconds.
      audio: encoded audio, or the file that holds it.
    """

    path: str
    domain: str
    text: str = ""
    label: str = ""
    speaker: str = ""
    lang: str = ""
    licence: str = ""
    source: str = ""
    native_sr: int = 0
    bw_hz: float = 0.0
    dur_s: float = 0.0
    audio: bytes | str = dataclasses.field(default=b"", repr=False)

    def open(self) -> soundfile.SoundFile:
        """Opens the audio for reading.

        Raises:
          OSError: if there is no such file.
          soundfile.LibsndfileError: if it holds no audio that libsndfile reads.
        """
        if isinstance(self.audio, bytes):
            return soundfile.SoundFile(io.BytesIO(self.audio))
        with open(self.audio, "rb"):  # libsndfile calls a missing file "System error"
            return soundfile.SoundFile(self.audio)


CLIP_FIELDS = tuple(field.name for field in dataclasses.fields(Clip) if field.name != "audio")
NUMBER_FIELDS: dict[str, type] = {"native_sr": int, "bw_hz": float, "dur_s": float}


Row = Mapping[str, Any]


def _word(value: Any = "") -> str:
    """Text that many clips share, kept once for all of them."""
    return sys.intern(str(value))


_UNIQUE_FIELDS = ("path", "text")
# What makes a field's value of a cell, and by default "unknown".
_KINDS: dict[str, Callable[..., Any]] = {
    name: NUMBER_FIELDS.get(name, str if name in _UNIQUE_FIELDS else _word) for name in CLIP_FIELDS
}
_TYPECODES = {int: "q", float: "d"}


class ClipTable(Sequence[Clip]):
    """Clips kept by column, without an object for each: a million take 0.25 GB.

    Attributes:
      columns: `CLIP_FIELDS` of every clip, in order.
      folder: where the audio is; without one, the clips have none.
    """

    def __init__(self, columns: Mapping[str, Sequence[Any]], folder: str | None = None) -> None:
        """Takes "path" and any other columns; what the others would say is unknown."""
        self.columns = {name: self._column(name, columns) for name in CLIP_FIELDS}
        self.folder = folder

    @staticmethod
    def _column(name: str, columns: Mapping[str, Sequence[Any]]) -> Any:
        kind = _KINDS[name]
        values: Iterable[Any] = itertools.repeat(kind(), len(columns["path"]))
        if name in columns:
            values = map(kind, columns[name])
        return array(_TYPECODES[kind], values) if kind in _TYPECODES else list(values)

    @classmethod
    def of_rows(cls, rows: Iterable[tuple[int, Row]], folder: str | None = None) -> ClipTable:
        """Makes a table of numbered rows.

        Raises:
          ValueError: if a column is missing or a value malformed; names the number of the row.
        """
        table = cls({"path": ()}, folder)
        columns = [(name, column.append) for name, column in table.columns.items()]
        for number, row in rows:
            try:
                facts = facts_of(row)
                for name, append in columns:
                    append(facts[name])
            except (OverflowError, TypeError, ValueError) as error:
                raise ValueError(f"line {number}: {error}") from error
        return table

    def __len__(self) -> int:
        return len(self.columns["path"])

    @overload
    def __getitem__(self, index: int) -> Clip: ...

    @overload
    def __getitem__(self, index: slice) -> list[Clip]: ...

    def __getitem__(self, index: int | slice) -> Clip | list[Clip]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        facts = {name: values[index] for name, values in self.columns.items()}
        audio = b"" if self.folder is None else os.path.join(self.folder, facts["path"])
        return Clip(**facts, audio=audio)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ClipTable):
            return NotImplemented
        return (self.columns, self.folder) == (other.columns, other.folder)


def column(clips: Sequence[Clip], name: str) -> Sequence[Any]:
    """One field of every clip; quick if they are a `ClipTable`."""
    if isinstance(clips, ClipTable):
        return clips.columns[name]
    return [getattr(clip, name) for clip in clips]


class Source(Protocol):
    """An indexed set of clips."""

    @property
    def clips(self) -> Sequence[Clip]:
        """What is known of every clip at no cost: path, domain and speaker at least.

        A source that may be large keeps a `ClipTable`; see `column`.
        """
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Clip:
        """Fetches a clip with its audio."""
        ...


class FileSource:
    """Clips in files of their own."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        return self.clips[index]


class JoinedSource:
    """The clips of several sources, one source after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._starts = list(itertools.accumulate(map(len, sources[:-1]), initial=0))
        joined = itertools.chain.from_iterable
        self.clips = ClipTable(
            {name: list(joined(column(s.clips, name) for s in sources)) for name in CLIP_FIELDS}
        )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        which = bisect.bisect_right(self._starts, index) - 1
        return self._sources[which][index - self._starts[which]]


def open_source(root: str) -> Source:
    """Opens what `config.data.root` may name.

    Args:
      root: one of these, or several joined by commas:
        a folder, searched in depth for audio files;
        a manifest .csv or .jsonl, whose paths are relative to it;
        "tfds:NAME_OR_FOLDER:SPLIT", a data set that `gac_jax.data.pack` wrote;
        "array_record:PATTERN", its files alone;
        "", the clips that come with the package.

    Raises:
      UserError: if there is no such thing, or it holds no clips.
    """
    if not root or os.path.exists(root):
        return _open(root)
    parts = [part.strip() for part in root.split(",")]
    if not all(parts):
        raise UserError(f"{root}: names nothing before or after a comma; take it out")
    sources = [_open(part) for part in parts]
    return sources[0] if len(sources) == 1 else JoinedSource(sources)


def _open(root: str) -> Source:
    if not root:
        return _open_bundled()
    kind, _, name = root.partition(":")
    if kind in ("tfds", "array_record") and name:
        from gac_jax.data import gac_audio  # tensorflow-datasets takes 0.3 s to import

        opener = gac_audio.open_tfds if kind == "tfds" else gac_audio.open_array_records
        return opener(name)
    path = Path(root)
    if path.is_dir():
        return open_folder(path)
    if not path.is_file():
        raise UserError(f"{root}: no such folder or manifest; set data.root to one that exists")
    return open_manifest(path)


def _open_bundled() -> FileSource:
    folder = Path(str(resources.files("gac_jax") / "examples"))
    found = open_folder(folder).clips
    facts = {"licence": "CC BY-SA 3.0", "source": "Unknown Horizons"}  # LICENSES.md says more
    columns = {name: column(found, name) for name in ("path", "domain")}
    columns |= {name: [fact] * len(found) for name, fact in facts.items()}
    return FileSource(ClipTable(columns, str(folder)))


def open_folder(folder: Path) -> FileSource:
    """Lists the audio files below `folder`, sorted by name.

    The domain of a file is the first part of its path, or its name, that is one of `DOMAINS`.

    Raises:
      UserError: if there are none.
    """
    paths = sorted(path.relative_to(folder) for path in _audio_files(folder))
    if not paths:
        suffixes = ", ".join(sorted(AUDIO_SUFFIXES))
        raise UserError(f"{folder}: no audio files in this folder; it reads {suffixes}")
    columns = {"path": [p.as_posix() for p in paths], "domain": [_domain_of(p) for p in paths]}
    return FileSource(ClipTable(columns, str(folder)))


def _audio_files(folder: Path) -> Iterator[Path]:
    for base, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES:
                yield Path(base, name)


def _domain_of(path: Path) -> str:
    parts = [part.lower() for part in path.with_suffix("").parts]
    return next((part for part in parts if part in DOMAINS), "other")


def open_manifest(manifest: Path) -> FileSource:
    """Reads a table with one clip per row; `path` and `domain` must be given, the rest may be.

    Raises:
      UserError: if a column is missing, a value is malformed, or there are no rows.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    if manifest.suffix not in readers:
        raise UserError(f"{manifest}: a manifest ends in .csv or .jsonl")
    state = manifest.stat()
    clips = _table_of(manifest, readers[manifest.suffix], state.st_mtime_ns, state.st_size)
    if not clips:
        raise UserError(f"{manifest}: the manifest lists no clips")
    return FileSource(clips)


@functools.lru_cache(maxsize=4)  # training, validation and the model card ask for the same one
def _table_of(
    manifest: Path, read: Callable[[Path], Iterator[tuple[int, Row]]], mtime_ns: int, size: int
) -> ClipTable:
    """The clips of a manifest in the state that its time of change and size tell."""
    try:
        return ClipTable.of_rows(read(manifest), str(manifest.parent))
    except UnicodeDecodeError as error:
        raise UserError(f"{manifest}: not UTF-8 text; save it as UTF-8") from error
    except ValueError as error:
        raise UserError(f"{manifest} {error}") from error


def clip_from(row: Row) -> Clip:
    """Makes a clip, without audio, of a row of a table.

    Raises:
      ValueError: if a column is missing or a value malformed.
    """
    return Clip(**facts_of(row))


def facts_of(row: Row) -> dict[str, Any]:
    """Finds `CLIP_FIELDS` in a row of a table.

    Raises:
      ValueError: if a column is missing or a value malformed.
    """
    for name in ("path", "domain"):
        if not row.get(name):
            raise ValueError(f"column '{name}' is missing or empty")
    if row["domain"] not in DOMAINS:
        raise ValueError(f"domain '{row['domain']}' is none of {', '.join(DOMAINS)}")
    return {
        name: kind() if (value := row.get(name)) is None or value == "" else kind(value)
        for name, kind in _KINDS.items()
    }


def _read_csv(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        try:
            yield from ((table.line_num, row) for row in table)
        except csv.Error as error:  # such as a quote that never ends
            raise UserError(f"{path} after line {table.line_num}: {error}; mend it") from error


def _read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            if not isinstance(row, dict):
                raise UserError(f"{path} line {number}: not a JSON object")
            yield number, row
