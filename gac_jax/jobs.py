"""Which files a run of the codec reads and writes, settled before any work starts."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from gac_jax.data.sources import AUDIO_SUFFIXES
from gac_jax.errors import UserError

# What each mode writes for every input.
OUTPUTS = {"roundtrip": (".gac", ".wav", ".png"), "encode": (".gac",), "decode": (".wav",)}
GAC_SUFFIXES = frozenset({".gac"})


@dataclasses.dataclass(frozen=True)
class Job:
    """One input and where its outputs go.

    Attributes:
      source: the file to read.
      name: its path below the input folder, as shown to the user.
      target: path of the outputs without their suffix; the tree of the input is kept.
    """

    source: Path
    name: Path
    target: Path

    def output(self, suffix: str) -> Path:
        """Path of one output; `Path.with_suffix` would cut names such as 'take 1.5'."""
        return self.target.with_name(self.target.name + suffix)


def plan(pattern: str, output: str, mode: str, overwrite: bool) -> list[Job]:
    """Finds the inputs and checks that every output can be written.

    Args:
      pattern: a file, a folder (searched in depth) or a glob.
      output: folder for the outputs.
      mode: a key of `OUTPUTS`.
      overwrite: allow outputs that exist.

    Raises:
      UserError: nothing to read, or outputs that collide, exist or cannot be written.
    """
    folder = Path(os.path.expanduser(output))
    root, sources = _find(os.path.expanduser(pattern), mode, folder)
    names = [source.relative_to(root) for source in sources]
    jobs = [
        Job(source, name, folder / name.parent / name.stem)
        for source, name in zip(sources, names, strict=True)
    ]
    _check_distinct(jobs)
    _check_folder(folder)
    check_outputs(
        (job.output(suffix) for job in jobs for suffix in OUTPUTS[mode]), overwrite, sources
    )
    return jobs


def check_outputs(paths: Iterable[Path], overwrite: bool, sources: Sequence[Path] = ()) -> None:
    """Checks files that are going to be written.

    Raises:
      UserError: names the first that is an input, is a folder, exists, or lies in a place where
        nothing can be written.
    """
    inputs = {source.resolve() for source in sources}
    writable: set[Path] = set()
    for path in paths:
        if path.resolve() in inputs:
            raise UserError(f"{path}: is an input too; write to another folder")
        if os.path.isdir(path):
            raise UserError(f"{path}: is a folder, where a file is to be written; move it away")
        if os.path.lexists(path) and not overwrite:
            raise UserError(f"{path}: exists; pass --overwrite, or write to another folder")
        if path.parent not in writable:
            _check_writable(path.parent)
            writable.add(path.parent)


def _find(pattern: str, mode: str, output: Path) -> tuple[Path, list[Path]]:
    """Returns the folder that names are relative to, and the inputs in order."""
    if os.path.isfile(pattern):
        return Path(pattern).parent, [Path(pattern)]
    kind, suffixes = (".gac", GAC_SUFFIXES) if mode == "decode" else ("audio", AUDIO_SUFFIXES)
    if os.path.isdir(pattern):
        root, found = Path(pattern), _walk(pattern)
        remedy = f"no {kind} files in this folder"
    elif _is_glob(pattern):
        parts = Path(pattern).parts
        root = Path(*takewhile(lambda part: not _is_glob(part), parts))
        found = (Path(path) for path in glob.iglob(pattern, recursive=True))
        remedy = f"no {kind} files match this pattern"
    else:
        raise UserError(f"--input={pattern}: no such file or folder")
    sources = sorted(path for path in found if path.suffix.lower() in suffixes and path.is_file())
    if mode != "decode":  # what an earlier run decoded into a folder in here is not an input
        sources = [path for path in sources if not _within(path, output, root)]
    if not sources:
        raise UserError(f"{pattern}: {remedy}; --mode={mode} reads {', '.join(sorted(suffixes))}")
    return root, sources


def _walk(folder: str) -> Iterator[Path]:
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(base, name) for name in names if not name.startswith("."))


def _is_glob(text: str) -> bool:
    return any(character in text for character in "*?[")


def _within(path: Path, output: Path, root: Path) -> bool:
    """Whether path lies in output and output lies in root."""
    inside = output.resolve()
    return root.resolve() in inside.parents and inside in path.resolve().parents


def _check_distinct(jobs: Sequence[Job]) -> None:
    first: dict[Path, Path] = {}
    for job in jobs:
        other = first.setdefault(job.target, job.source)
        if other != job.source:
            raise UserError(f"{other} and {job.source} would share an output; rename one of them")


def _check_folder(folder: Path) -> None:
    looks_like_file = folder.suffix.lower() in AUDIO_SUFFIXES | GAC_SUFFIXES
    if os.path.isfile(folder) or (looks_like_file and not os.path.isdir(folder)):
        raise UserError(f"{folder}: --output must be a folder, not a file")


def _check_writable(folder: Path) -> None:
    """Checks the nearest folder that exists; the rest is made when something goes in."""
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not os.path.isdir(nearest):
        raise UserError(f"{nearest}: is not a folder; write to another")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{nearest}: no permission to write here; write to another folder")
