"""Which clips a run takes, and the excerpts of them that it keeps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from gac_jax.data.pipeline import split
from gac_jax.data.sources import CLIP_FIELDS, DOMAINS, Clip, Source, clip_from
from gac_jax.data.transforms import UNREADABLE
from gac_jax.errors import UserError
from gac_jax.evaluation.folder import Folder, Row, read_rows, write_rows
from gac_jax.rates import SAMPLE_RATE
from gac_jax.signal.audio_io import AudioWriter, to_mono_32k

SPLITS = ("all", "held_out")


@dataclasses.dataclass(frozen=True)
class Reference:
    """An original, as every system gets it.

    Attributes:
      id: "speech-007": domain, and place in the order in which its clips are taken.
      clip: what is known of it, without audio; no text where the excerpt is not the whole clip.
      seconds: length of the excerpt.
    """

    id: str
    clip: Clip
    seconds: float


def choose(
    clips: Sequence[Clip], which: str, validation_percent: float, limit: int
) -> dict[str, int]:
    """Picks clips at random, the same at every call; a higher limit adds to those of a lower one.

    Args:
      clips: of a source.
      which: one of `SPLITS`.
      validation_percent: how many training held out.
      limit: most clips of each domain; 0 is all.

    Returns:
      Places in the source by id.

    Raises:
      UserError: there are none.
    """
    side = range(len(clips)) if which == "all" else split(clips, validation_percent)[1]
    chosen: dict[str, int] = {}
    for domain in DOMAINS:
        members = [index for index in side if clips[index].domain == domain]
        order = np.random.default_rng(0).permutation(np.array(members, int)).tolist()
        chosen |= {f"{domain}-{i:03d}": index for i, index in enumerate(order[: limit or None])}
    if not chosen:
        raise UserError("no clip is held out: raise --validation_percent, or pass --split=all")
    return chosen


def gather(
    source: Source, chosen: Mapping[str, int], seconds: float, folder: Folder
) -> list[Reference]:
    """Writes the start of every clip to the folder, unless it is there; adds to its clips.jsonl.

    A clip that cannot be read is left out, and the log names it.

    Args:
      source: of the clips.
      chosen: as `choose` returns it.
      seconds: most of a clip to take.
      folder: of the run.

    Raises:
      UserError: the folder holds other clips under these ids, or none can be read.
    """
    known = read_references(folder)
    found = {}
    for id_, index in chosen.items():
        there = known.get(id_)
        if there is None or not folder.wave(id_).is_file():
            there = _excerpt(source, id_, index, seconds, folder)
        elif there.clip.path != source.clips[index].path:
            raise UserError(f"{folder.clips}: lists other clips; give --output a new folder")
        if there is not None:
            found[id_] = there
    if not found:
        raise UserError("none of the clips can be read; the log names them")
    write_rows(folder.clips, [_row(reference) for reference in (known | found).values()])
    return list(found.values())


def read_references(folder: Folder) -> dict[str, Reference]:
    """The clips that a folder holds, by id."""
    references = {}
    for row in read_rows(folder.clips):
        references[row["id"]] = Reference(row["id"], clip_from(row), row["seconds"])
    return references


def _row(reference: Reference) -> Row:
    facts = {name: getattr(reference.clip, name) for name in CLIP_FIELDS}
    known = {name: value for name, value in facts.items() if value}
    return {"id": reference.id, "seconds": reference.seconds, **known}


def _excerpt(
    source: Source, id_: str, index: int, seconds: float, folder: Folder
) -> Reference | None:
    path = source.clips[index].path
    try:
        clip = source[index]
        with clip.open() as file:
            wanted = math.ceil(seconds * file.samplerate)
            samples = file.read(wanted, dtype="float32", always_2d=True)
            wave = to_mono_32k(samples.mean(axis=1), file.samplerate)
            is_whole = file.frames <= wanted
    except UNREADABLE as error:
        logging.warning("unreadable clip, left out: %s: %s", path, error)
        return None
    folder.wave(id_).parent.mkdir(parents=True, exist_ok=True)
    with AudioWriter(folder.wave(id_)) as writer:
        writer.write(wave)
    text = clip.text if is_whole else ""
    return Reference(id_, dataclasses.replace(clip, text=text, audio=b""), len(wave) / SAMPLE_RATE)
