"""A corpus through an encoder, shard by shard, into a token set (`gac_jax.data.tokens`).

Any number of processes share the shards and need not know of each other. What is written depends
on the model, the corpus and the batch size alone: not on the number of processes, nor on how often
they were stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from gac_jax import rates
from gac_jax.clock import CompileClock
from gac_jax.codec import Codec
from gac_jax.data import tokens
from gac_jax.data.sources import Clip, Source, column
from gac_jax.data.summary import duration
from gac_jax.data.tokens import About, Outcome
from gac_jax.data.transforms import UNREADABLE
from gac_jax.errors import UserError
from gac_jax.signal.audio_io import AudioReader, to_mono_32k

CLIPS_PER_SHARD = 1_000  # what a killed run does again at most
HELD_SECONDS = 60.0  # longer clips are not held in memory, but decoded twice as they are encoded
READERS = 8  # threads that decode audio ahead of the encoder
BATCHES = 4  # clips are decoded and encoded in groups of so many batches


class _Heard(NamedTuple):
    """A clip before it is encoded: mono blocks at 32 kHz, or the reason why there are none."""

    clip: Clip
    blocks: Iterable[np.ndarray]
    problem: str


@dataclasses.dataclass(frozen=True)
class Totals:
    """What a process did.

    Attributes:
      clips: how many it encoded.
      audio_seconds: their length.
      work_seconds: the time it took, without compilation.
      problems: why clips were dropped, by their paths.
    """

    clips: int = 0
    audio_seconds: float = 0.0
    work_seconds: float = 0.0
    problems: dict[str, str] = dataclasses.field(default_factory=dict)

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.clips + other.clips,
            self.audio_seconds + other.audio_seconds,
            self.work_seconds + other.work_seconds,
            self.problems | other.problems,
        )

    def __str__(self) -> str:
        """For example: 990 clips, 1.2 h of audio in 2.4 min: 30 h/h (real-time factor 0.033)."""
        text = f"{self.clips:,} clips, {duration(self.audio_seconds)} of audio"
        if self.audio_seconds and self.work_seconds:
            speed = self.audio_seconds / self.work_seconds
            text += f" in {duration(self.work_seconds)}: "
            text += f"{speed:.3g} h/h (real-time factor {1 / speed:.2g})"
        return text + (f"; {len(self.problems):,} dropped" if self.problems else "")


def describe(codec: Codec, source: Source, num_shards: int = 0) -> About:
    """What the token set of a corpus will be made of.

    Args:
      codec: the model.
      source: the corpus.
      num_shards: 0 is one for every thousand clips.

    Raises:
      UserError: two clips have the same path, or there are more shards than clips.
    """
    seen: set[str] = set()
    digest = hashlib.sha256()
    for path in column(source.clips, "path"):
        if path in seen:
            raise UserError(f"{path}: two clips of the corpus have this path; keep one")
        seen.add(path)
        digest.update(os.fsencode(path) + b"\0")
    if num_shards > len(seen):
        raise UserError(f"--shards={num_shards}: the corpus has only {len(seen)} clips; take fewer")
    return About(
        fingerprint=codec.fingerprint.hex(),
        batch_size=codec.batch_size,
        corpus=digest.hexdigest(),
        clips=len(seen),
        shards=num_shards or -(-len(seen) // CLIPS_PER_SHARD),
        model=codec.config["name"],
        codebook_sizes=codec.codebook_sizes,
    )


def tokenize(
    codec: Codec,
    source: Source,
    folder: Path,
    num_shards: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Totals:
    """Encodes this process's share of a corpus: each shard that is not there yet.

    Clips that cannot be read are left out, and the index of their shard says why.

    Args:
      codec: the model; clips are encoded with all of its codebooks.
      source: the corpus.
      folder: of the token set.
      num_shards: see `describe`.
      process_index: this process; shard i belongs to process i % process_count.
      process_count: how many there are.

    Raises:
      UserError: the folder holds another token set or cannot be written, or no clip of a shard can
        be read.
    """
    about = describe(codec, source, num_shards)
    tokens.begin(folder, about)
    missing = tokens.missing_shards(folder, about)
    todo = [shard for shard in missing if shard % process_count == process_index]
    totals, clock = Totals(), CompileClock()
    bar = tqdm(total=sum(len(about.part(i)) for i in todo), unit="clip", leave=False, disable=None)
    with bar, clock.running():
        for shard in todo:
            bar.set_description_str(about.stem(shard))
            start = clock.now()
            outcomes = _encode(codec, source, about.part(shard), bar.update)
            _check(outcomes, folder / about.stem(shard))
            tokens.write_shard(folder, about, shard, outcomes)
            done = _total(outcomes, clock.now() - start)
            bar.write(f"{about.stem(shard)}: {done}")
            totals += done
    return totals


def _encode(
    codec: Codec, source: Source, part: range, advance: Callable[[float], object]
) -> list[Outcome]:
    """Encodes a part of a corpus, while threads decode the clips that come next."""
    size = BATCHES * codec.batch_size
    groups = [part[i : i + size] for i in range(0, len(part), size)]
    outcomes = []
    with ThreadPoolExecutor(READERS) as readers:
        coming = readers.map(partial(_hear, source), groups[0])
        for following in (*groups[1:], ()):
            members = list(coming)
            coming = readers.map(partial(_hear, source), following)
            for outcome in _encode_group(codec, members):
                outcomes.append(outcome)
                advance(1)
    return outcomes


def _hear(source: Source, index: int) -> _Heard:
    """Decodes a clip, or gives the stream of one that is long."""
    clip = source.clips[index]
    try:
        clip = source[index]
        return _Heard(clip, _blocks(clip), "")
    except UNREADABLE as error:
        return _Heard(clip, (), str(error))


def _blocks(clip: Clip) -> Iterable[np.ndarray]:
    """Reads a clip as `Codec.encode_file` does."""
    if isinstance(clip.audio, str):
        reader = AudioReader(clip.audio)
        return reader if reader.duration > HELD_SECONDS else list(reader)
    with clip.open() as file:
        audio = file.read(dtype="float32", always_2d=True).mean(axis=1)
        return [to_mono_32k(audio, file.samplerate)]


def _encode_group(codec: Codec, members: Sequence[_Heard]) -> Iterator[Outcome]:
    """Encodes clips at once; where a long one turns out to be damaged, each of them alone."""
    readable = [each.blocks for each in members if not each.problem]
    try:
        found = iter(codec.encode_streams(readable, rates.kbps(codec.num_codebooks - 1)))
    except (UserError, OSError) as error:
        if len(members) > 1:
            for each in members:
                yield from _encode_group(codec, [each])
        else:
            yield Outcome(members[0].clip, None, str(error))
        return
    for clip, _, problem in members:
        yield Outcome(clip, None if problem else next(found), problem)


def _check(outcomes: Sequence[Outcome], shard: Path) -> None:
    """A disk that went away must not look like a corpus of damaged clips."""
    if all(each.problem for each in outcomes):
        raise UserError(
            f"{shard}: none of its {len(outcomes)} clips can be read, the first because "
            f"{outcomes[0].problem}; see to the disk, or take these clips out of the corpus"
        )


def _total(outcomes: Sequence[Outcome], work_seconds: float) -> Totals:
    encoded = [each.tokens for each in outcomes if each.tokens is not None]
    problems = {each.clip.path: each.problem for each in outcomes if each.problem}
    return Totals(len(encoded), sum(t.duration for t in encoded), work_seconds, problems)
