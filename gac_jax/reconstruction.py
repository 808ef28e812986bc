"""Audio files to .gac files and back: encodes, decodes, times and draws.

Audio streams through in constant memory. A file that cannot be processed is reported, and the
others go on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from gac_jax import atomic, rates, spectrogram
from gac_jax.bitstream import HEADER_BYTES, MAGIC, Header, Tokens, read_header
from gac_jax.clock import CompileClock
from gac_jax.codec import Codec
from gac_jax.errors import UserError
from gac_jax.jobs import Job
from gac_jax.report import Row
from gac_jax.signal.audio_io import AudioReader, AudioWriter

DEFAULT_KBPS = 0.275
_HEAD = spectrogram.SHOWN_SECONDS * rates.SAMPLE_RATE

Advance = Callable[[float], Any]  # moves the progress bar by a share of one file's pass


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What is remembered of a decoded file.

    Attributes:
      head: float32 samples at its start, as many as a spectrogram shows.
      clipped: samples beyond full scale.
    """

    head: np.ndarray
    clipped: int


class _File(NamedTuple):
    """Tokens, and in how many bytes they came or went."""

    tokens: Tokens
    bytes: int


class Reconstruction:
    """Runs jobs through a codec.

    Attributes:
      clock: what real-time factors are measured by.
    """

    def __init__(
        self,
        codec: Codec,
        mode: str,
        kbps: float | None,
        sampling: Mapping[str, Any],
        compress: bool = False,
    ) -> None:
        """Prepares a run.

        Args:
          codec: the model.
          mode: a key of `gac_jax.jobs.OUTPUTS`.
          kbps: rate; None is `DEFAULT_KBPS` or, when decoding, all that a file holds.
          sampling: seed, steps, solver, guidance and temperature as for `Codec.decode`.
          compress: whether the .gac files that are written are compressed.

        Raises:
          UserError: the model has no decoder, and the mode asks for one; or no entropy model, and
            files are to be compressed.
        """
        if mode != "encode":
            codec.require_decoder()
        if compress:
            _ = codec.entropy_coder
        self._codec, self._mode, self._kbps, self._sampling = codec, mode, kbps, sampling
        self._compress = compress
        self.clock = CompileClock()

    def run(self, jobs: Sequence[Job]) -> tuple[list[Row], dict[str, str]]:
        """Processes all jobs.

        Returns:
          A row for each job that went well, and the error of each that did not by its path.
        """
        outcomes: dict[Job, Row | str] = {}
        passes = 2 if self._mode == "roundtrip" else 1
        layout = "{percentage:3.0f}%|{bar}| {elapsed} {desc}"
        bar = tqdm(total=passes * len(jobs), leave=False, disable=None, bar_format=layout)
        with bar, self.clock.running():
            for group in groups(jobs, self._shape, self._codec.batch_size):
                bar.set_description_str(str(group[0].name))
                outcomes.update(self._attempt(group, bar.update))
                bar.n = passes * len(outcomes)  # also where a file failed half way
        rows = [row for job in jobs if isinstance(row := outcomes[job], Row)]
        return rows, {str(j.source): e for j in jobs if isinstance(e := outcomes[j], str)}

    def _attempt(self, group: list[Job], advance: Advance) -> dict[Job, Row | str]:
        """Processes a group; if it fails, each of its files alone."""
        try:
            return dict(zip(group, self._process(group, advance), strict=True))
        except (UserError, OSError) as error:
            if len(group) == 1:
                return {group[0]: _explain(group[0].source, error)}
        return {job: row for one in group for job, row in self._attempt([one], advance).items()}

    def _process(self, group: list[Job], advance: Advance) -> list[Row]:
        encodes, decodes = self._mode != "decode", self._mode != "encode"
        start = self.clock.now()
        files = self._encode(group, advance) if encodes else [self._read(job) for job in group]
        tokens = [file.tokens for file in files]
        middle = self.clock.now()
        decoded = self._decode(group, tokens, advance) if decodes else []
        end = self.clock.now()
        if encodes and decodes:
            _draw(group, tokens, decoded)
        seconds = sum(clip.duration for clip in tokens)
        return [
            Row(
                file=str(job.name),
                seconds=file.tokens.duration,
                bytes=file.bytes,
                encode_rtf=(middle - start) / seconds if encodes else None,
                decode_rtf=(end - middle) / seconds if decodes else None,
                clipped=decoded[i].clipped if decodes else 0,
            )
            for i, (job, file) in enumerate(zip(group, files, strict=True))
        ]

    def _encode(self, group: list[Job], advance: Advance) -> list[_File]:
        """Writes the .gac files."""
        kbps = DEFAULT_KBPS if self._kbps is None else self._kbps
        streams = [_Watched(AudioReader(job.source), advance) for job in group]
        tokens = self._codec.encode_streams(streams, kbps)
        files = []
        for job, clip in zip(group, tokens, strict=True):
            data = self._codec.compress(clip) if self._compress else clip.to_bytes()
            atomic.write(job.output(".gac"), data)
            files.append(_File(clip, len(data)))
        return files

    def _decode(self, group: list[Job], tokens: list[Tokens], advance: Advance) -> list[Decoded]:
        """Writes the .wav files; a file that is alone never is in memory as a whole."""
        streams: list[Iterable[np.ndarray]]
        if len(tokens) == 1:
            streams = [self._codec.decode_blocks(tokens[0], **self._sampling)]
        else:
            streams = [[wave] for wave in self._codec.decode_batch(tokens, **self._sampling)]
        return [
            write_wave(job.output(".wav"), _watch(blocks, clip.num_samples, advance))
            for job, clip, blocks in zip(group, tokens, streams, strict=True)
        ]

    def _read(self, job: Job) -> _File:
        data = read_gac(job.source)
        tokens = self._codec.read(data)
        if self._kbps is None:
            return _File(tokens, len(data))
        fewer = tokens.with_residuals(rates.residuals_for(self._kbps))
        return _File(fewer, len(fewer.to_bytes()))

    def _shape(self, job: Job) -> int:
        """See `groups`: clips longer than a window, and those with an error, are alone."""
        decodes = self._mode == "decode"
        try:
            clip = _read_header(job.source) if decodes else AudioReader(job.source)
        except (UserError, OSError):
            return 0
        if not clip.duration <= self._codec.config["window"] / rates.FRAME_RATE:
            return 0
        frames = rates.num_frames(round(clip.duration * rates.SAMPLE_RATE))
        return self._codec.plan(frames)[0].bucket


def groups(jobs: Sequence[Job], shape: Callable[[Job], int], size: int) -> Iterator[list[Job]]:
    """Jobs to compute together: up to `size` clips of one window shape; the rest alone.

    Args:
      jobs: all of them.
      shape: frames of the window that a job's clip fills, or 0 if it is to be computed alone.
      size: windows that are computed at once.
    """
    shapes = {job: shape(job) if size > 1 else 0 for job in jobs}
    for bucket, members in groupby(sorted(jobs, key=shapes.__getitem__), key=shapes.__getitem__):
        alike, step = list(members), size if bucket else 1
        yield from (alike[i : i + step] for i in range(0, len(alike), step))


def read_gac(path: Path) -> bytes:
    """Reads a file to its end, unless it plainly is no .gac file; it may be a film."""
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
        return start + file.read() if start == MAGIC else start


def _read_header(path: Path) -> Header:
    with path.open("rb") as file:
        return read_header(file.read(HEADER_BYTES))


def write_wave(path: Path, blocks: Iterable[np.ndarray]) -> Decoded:
    """Writes audio as it comes, and keeps its start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = np.zeros(0, np.float32)
    with AudioWriter(path) as writer:
        for block in blocks:
            writer.write(block)
            if head.size < _HEAD:
                head = np.concatenate([head, block])[:_HEAD]
    return Decoded(head, writer.clipped)


def _draw(group: list[Job], tokens: list[Tokens], decoded: list[Decoded]) -> None:
    """Writes the .png files."""
    for job, clip, result in zip(group, tokens, decoded, strict=True):
        original = np.zeros(0, np.float32)
        for block in AudioReader(job.source):
            original = np.concatenate([original, block])
            if original.size >= _HEAD:
                break
        picture = spectrogram.png(original, result.head, clip.kbps, clip.duration)
        atomic.write(job.output(".png"), picture)


class _Watched:
    """An audio file that moves the progress bar by 1 in the two readings that encoding takes."""

    def __init__(self, reader: AudioReader, advance: Advance) -> None:
        self._reader, self._advance = reader, advance

    def __iter__(self) -> Iterator[np.ndarray]:
        return _watch(self._reader, 2 * self._reader.duration * rates.SAMPLE_RATE, self._advance)


def _watch(blocks: Iterable[np.ndarray], samples: float, advance: Advance) -> Iterator[np.ndarray]:
    for block in blocks:
        yield block
        advance(block.size / samples)


def _explain(path: Path, error: UserError | OSError) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or path}: {error.strerror or error}"
    return str(error) if str(path) in str(error) else f"{path}: {error}"
