"""Where clips come from: a folder, a manifest, or a TFDS data set.

A source lists its clips without opening any audio; `source[i].open()` opens one.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

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


class Source(Protocol):
    """An indexed set of clips."""

    @property
    def clips(self) -> Sequence[Clip]:
        """What is known of every clip at no cost: path, domain and speaker at least."""
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


def open_source(root: str) -> Source:
    """Opens a folder, a manifest or a TFDS data set.

    Args:
      root: a folder, searched in depth for audio files; a manifest .csv or .jsonl, whose paths are
        relative to it; "tfds:NAME_OR_FOLDER:SPLIT", built by `gac_jax.data.gac_audio`; or "" for
        the clips that come with the package.

    Raises:
      UserError: if there is no such thing, or it holds no clips.
    """
    if not root:
        return _open_bundled()
    if root.startswith("tfds:"):
        from gac_jax.data.gac_audio import open_tfds  # tensorflow-datasets takes 0.3 s to import

        return open_tfds(root.removeprefix("tfds:"))
    path = Path(root)
    if path.is_dir():
        return open_folder(path)
    if not path.is_file():
        raise UserError(f"{root}: no such folder or manifest; set data.root to one that exists")
    return open_manifest(path)


def _open_bundled() -> FileSource:
    clips = open_folder(Path(str(resources.files("gac_jax") / "examples"))).clips
    licence, source = "CC BY-SA 3.0", "Unknown Horizons"  # examples/LICENSES.md says more
    return FileSource([dataclasses.replace(c, licence=licence, source=source) for c in clips])


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
    return FileSource(
        [Clip(path.as_posix(), _domain_of(path), audio=str(folder / path)) for path in paths]
    )


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
    clips = []
    try:
        for line, row in readers[manifest.suffix](manifest):
            clips.append(_clip_at(manifest, line, row))
    except UnicodeDecodeError as error:
        raise UserError(f"{manifest}: not UTF-8 text; save it as UTF-8") from error
    if not clips:
        raise UserError(f"{manifest}: the manifest lists no clips")
    return FileSource(clips)


def _clip_at(manifest: Path, line: int, row: Mapping[str, Any]) -> Clip:
    try:
        clip = clip_from(row)
    except ValueError as error:
        raise UserError(f"{manifest} line {line}: {error}") from error
    return dataclasses.replace(clip, audio=str(manifest.parent / clip.path))


def clip_from(row: Mapping[str, Any]) -> Clip:
    """Makes a clip, without audio, of a row of a table.

    Raises:
      ValueError: if a column is missing or a value malformed.
    """
    for column in ("path", "domain"):
        if not row.get(column):
            raise ValueError(f"column '{column}' is missing or empty")
    if row["domain"] not in DOMAINS:
        raise ValueError(f"domain '{row['domain']}' is none of {', '.join(DOMAINS)}")
    known = (name for name in CLIP_FIELDS if row.get(name) not in (None, ""))
    return Clip(**{name: NUMBER_FIELDS.get(name, str)(row[name]) for name in known})


def _read_csv(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        yield from ((table.line_num, row) for row in table)


def _read_jsonl(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            if not isinstance(row, dict):
                raise UserError(f"{path} line {number}: not a JSON object")
            yield number, row
