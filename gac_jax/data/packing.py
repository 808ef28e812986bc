"""Packs clips into a data set that `gac_jax.data.gac_audio` reads, shard by shard.

Shards are fixed parts of the list of clips, made by threads: decoding and encoding hold no lock.
They gather in a folder beside the data set, which takes its name when all of them are there. So a
run that is killed and started again makes what an unbroken one makes, and nothing unfinished is
ever found in the data set's place.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from gac_jax import atomic
from gac_jax.data.gac_audio import INDEX_FIELDS, NAME, SPLIT, VERSION, encode_record, features
from gac_jax.data.sources import CLIP_FIELDS, Clip, Source, column, open_source
from gac_jax.data.summary import duration
from gac_jax.data.transforms import UNREADABLE
from gac_jax.errors import UserError
from gac_jax.rates import SAMPLE_RATE
from gac_jax.signal.audio_io import AudioReader, to_16_bits

CLIPS_PER_SHARD = 1_000
# A shard of so many clips none of which can be read tells of a disk that went away.
SUSPICIOUS = 100
NAMED = 3  # clips that a report names for each reason

Index = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the clips.

    Attributes:
      clips: number packed, by domain, the most frequent first.
      seconds: their length, by domain.
      dropped: path of each clip that was left out, and why.
    """

    clips: Mapping[str, int]
    seconds: Mapping[str, float]
    dropped: Sequence[tuple[str, str]]

    @classmethod
    def of(cls, index: Index) -> Report:
        """Reads it off a data set's metadata."""
        seconds: Counter[str] = Counter()
        for domain, length in zip(index["domain"], index["dur_s"], strict=True):
            seconds[domain] += length
        dropped = [(path, reason) for path, reason in index["dropped"]]
        return cls(dict(Counter(index["domain"]).most_common()), seconds, dropped)

    def __str__(self) -> str:
        """One line of what was packed, and one for each reason why something was not."""
        parts = [f"{n:,} {name}, {duration(self.seconds[name])}" for name, n in self.clips.items()]
        total = duration(sum(self.seconds.values()))
        lines = [f"packed {sum(self.clips.values()):,} clips, {total} ({'; '.join(parts)})"]
        reasons: dict[str, list[str]] = {}
        for path, reason in self.dropped:
            reasons.setdefault(reason, []).append(path)
        for reason, paths in sorted(reasons.items(), key=lambda item: -len(item[1])):
            names = ", ".join(paths[:NAMED]) + (", ..." if len(paths) > NAMED else "")
            lines.append(f"left out {len(paths):,}: {reason} ({names})")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class _Job:
    """A data set to be made.

    Attributes:
      source: the clips.
      num_shards: files to divide them into.
      staging: where shards gather.
    """

    source: Source
    num_shards: int
    staging: Path

    @property
    def data(self) -> Path:
        """What becomes the data set."""
        return self.staging / "data"

    def digest(self) -> str:
        """Tells data sets of different clips or shards apart."""
        digest = hashlib.sha256(f"{VERSION} {self.num_shards}".encode())
        for name in CLIP_FIELDS:
            digest.update(json.dumps(list(column(self.source.clips, name))).encode())
        return digest.hexdigest()

    def places(self, shard: int) -> range:
        """Which clips are in a shard."""
        count = len(self.source)
        return range(count * shard // self.num_shards, count * (shard + 1) // self.num_shards)

    def records(self, shard: int) -> Path:
        """The file of a shard, named as TFDS does it."""
        return self.data / (f"{NAME}-{SPLIT}.array_record-{shard:05d}-of-{self.num_shards:05d}")

    def index(self, shard: int) -> Path:
        """What is known of a shard, written when its file is whole."""
        return self.staging / f"{shard:05d}.json"

    def missing(self) -> list[int]:
        """Shards that are yet to be made."""
        return [shard for shard in range(self.num_shards) if not self.index(shard).is_file()]


def pack(root: str, out: Path, num_shards: int = 0, workers: int = 0) -> Report:
    """Makes a data set, or goes on making it.

    Clips that cannot be read are left out. Clips of a packed data set are taken as they are, so
    that data sets can be joined. The length and sample rate of a recording are filled in where
    they are not known.

    Args:
      root: what to pack, see `gac_jax.data.sources.open_source`.
      out: the data set's folder, to be opened as "tfds:OUT:train". Nothing is there until the data
        set is whole; unfinished work is beside it, in OUT.packing.
      num_shards: files; 0 is one for every thousand clips.
      workers: threads; 0 is one for each processor.

    Raises:
      UserError: if the root or all of its clips cannot be read, there is not room for the data
        set, or there is another one.
    """
    source = open_source(root)
    num_shards = min(num_shards or -(-len(source) // CLIPS_PER_SHARD), len(source))
    job = _Job(source, num_shards, out.with_name(f"{out.name}.packing"))
    digest = job.digest()
    if not _is_done(out, digest):
        _begin(job, digest)
        _make(job, workers or len(os.sched_getaffinity(0)))
        _finish(job, out, digest)
    shutil.rmtree(job.staging, ignore_errors=True)
    return Report.of(tfds.builder_from_directory(out).info.metadata)


def _is_done(out: Path, digest: str) -> bool:
    """Whether an earlier run of the same command has come to its end."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    metadata = out / "metadata.json"
    if not metadata.is_file() or json.loads(metadata.read_bytes()).get("digest") != digest:
        raise UserError(f"{out}: exists, and is of other clips or shards; write elsewhere")
    return True


def _begin(job: _Job, digest: str) -> None:
    plan = job.staging / "digest"
    if not plan.is_file():
        atomic.write(plan, digest.encode())
    if plan.read_text() != digest:
        raise UserError(
            f"{job.staging}: unfinished, of other clips or --shards; go on with those, or remove it"
        )
    job.data.mkdir(exist_ok=True)
    for draft in job.data.glob(".*"):  # of a run that was killed
        draft.unlink()


def _make(job: _Job, workers: int) -> None:
    """Makes the missing shards."""
    missing, stop = job.missing(), threading.Event()
    done = len(job.source) - sum(len(job.places(shard)) for shard in missing)
    pool = ThreadPoolExecutor(workers)
    with tqdm(total=len(job.source), initial=done, unit="clip", disable=None) as bar:
        try:
            for made in as_completed(
                [pool.submit(_make_shard, job, shard, stop, bar.update) for shard in missing]
            ):
                made.result()
        finally:
            stop.set()  # after an error or a signal, the other threads end with their clip
            pool.shutdown(cancel_futures=True)


def _make_shard(
    job: _Job, shard: int, stop: threading.Event, advance: Callable[[], object]
) -> None:
    index: Index = {name: [] for name in INDEX_FIELDS}
    dropped: list[tuple[str, str]] = []
    places, size = job.places(shard), 0
    with atomic.replacing(job.records(shard)) as draft, _writer(draft) as write:
        for place in places:
            if stop.is_set():
                raise CancelledError
            clip = job.source.clips[place]
            try:
                clip = job.source[place]
                clip = _packed(clip)
                record = encode_record(clip)
            except (*UNREADABLE, UnicodeEncodeError) as error:  # a file's name may be no text
                dropped.append((_printable(clip.path), _reason(error, clip)))
            else:
                for name in INDEX_FIELDS:
                    index[name].append(getattr(clip, name))
                write(record)
                size += len(record)
            advance()
    if len(dropped) == len(places) >= SUSPICIOUS:
        raise UserError(
            f"{clip.path}: it and {len(places) - 1} clips before it cannot be read; see to the disk"
        )
    facts = {**index, "dropped": dropped, "bytes": size}
    atomic.write(job.index(shard), json.dumps(facts).encode())


@contextmanager
def _writer(path: Path) -> Iterator[Callable[[bytes], Any]]:
    """Opens an array_record file for writing; FLAC does not get smaller by compressing it again."""
    try:
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        try:
            yield writer.write
        finally:
            writer.close()
    except RuntimeError as error:  # array_record knows no other
        raise UserError(f"{path.parent}: cannot be written ({error})") from error


def _packed(clip: Clip) -> Clip:
    """The clip with its audio as 32 kHz mono FLAC."""
    if isinstance(clip.audio, bytes):
        return clip
    reader = AudioReader(clip.audio)
    samples = to_16_bits(np.concatenate(list(reader)))
    flac = io.BytesIO()
    soundfile.write(flac, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return dataclasses.replace(
        clip,
        native_sr=clip.native_sr or reader.source_rate,
        dur_s=clip.dur_s or len(samples) / SAMPLE_RATE,
        audio=flac.getvalue(),
    )


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _reason(error: Exception, clip: Clip) -> str:
    """What an error says, the same for all clips that have it."""
    text = "its name or text is not UTF-8" if isinstance(error, UnicodeError) else str(error)
    text = text.replace(str(clip.audio), "").replace("cannot read :", "cannot be read:")
    return " ".join(re.sub(r" around [\d.]+ s", "", text).split())


def _finish(job: _Job, out: Path, digest: str) -> None:
    """Adds the metadata and moves the data set to its place."""
    parts = [json.loads(job.index(shard).read_bytes()) for shard in range(job.num_shards)]
    names = (*INDEX_FIELDS, "dropped")
    metadata: Index = {name: [row for part in parts for row in part[name]] for name in names}
    if not metadata["path"]:
        shutil.rmtree(job.staging)
        (_, *reasons) = str(Report.of(metadata)).splitlines()
        raise UserError(f"{out}: none of the clips can be read: {'; '.join(reasons)}")
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=[len(part["path"]) for part in parts],
        num_bytes=sum(part["bytes"] for part in parts),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=job.data,
        features=features(),
        split_infos=[split],
        version=VERSION,
        check_data=False,  # takes TensorFlow
        description="32 kHz mono 16-bit FLAC with the fields of a clip.",
        metadata=tfds.core.MetadataDict(metadata, digest=digest),
        disable_shuffling=True,  # records keep the order of the clips; training shuffles anyway
    )
    try:
        os.rename(job.data, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from error
