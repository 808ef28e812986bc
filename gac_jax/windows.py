"""How long audio is cut into windows, the same for encoder, decoder, batches and streams.

A model sees windows of at most the length of the crops it was trained on. Longer audio is covered
by windows that overlap by an eighth. A window's shape depends on the clip's length alone, so a
clip is always computed by the same program, whatever else is in the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np

from gac_jax.rates import FRAME_SAMPLES

FADE = 2  # code frames in the middle of an overlap over which decoded audio is cross-faded
MULTIPLE = 16  # window sizes are multiples, so that overlaps are even and leave room for the fade


@dataclasses.dataclass(frozen=True)
class Window:
    """A run of code frames, counted from the start of the clip.

    Attributes:
      start: first frame.
      end: one past the last frame.
      size: frames of a full window of the model.
      first: whether the clip starts here.
      last: whether the clip ends here.
    """

    start: int
    end: int
    size: int
    first: bool
    last: bool

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.end - self.start

    @property
    def bucket(self) -> int:
        """Frames after padding: a quarter, a half or the whole of `size`."""
        return next(b for b in (self.size // 4, self.size // 2, self.size) if b >= self.frames)

    @property
    def overlap(self) -> int:
        """Frames shared with a neighbour."""
        return self.size // 8

    @property
    def kept(self) -> slice:
        """Frames, counted from `start`, whose codes this window decides: half of each overlap."""
        margin = self.overlap // 2
        return slice(0 if self.first else margin, self.frames - (0 if self.last else margin))


def plan(num_frames: int, size: int) -> list[Window]:
    """Windows of `size` code frames that cover num_frames of them in order.

    Raises:
      ValueError: size is not a positive multiple of `MULTIPLE`.
    """
    if size <= 0 or size % MULTIPLE:
        raise ValueError(f"windows must be multiples of {MULTIPLE} frames, not {size}")
    overlap = size // 8
    starts = range(0, max(num_frames - overlap, 1), size - overlap)
    ends = [min(start + size, num_frames) for start in starts]
    return [
        Window(start, end, size, start == 0, end == num_frames)
        for start, end in zip(starts, ends, strict=True)
    ]


def cut(blocks: Iterable[np.ndarray], windows: Iterable[Window]) -> Iterator[np.ndarray]:
    """Cuts a stream of samples into windows, holding no more than one window in memory.

    Args:
      blocks: float32 arrays (n,) that follow each other.
      windows: in order; audio is zero beyond the end of the stream.

    Yields:
      (bucket * 2560,) float32 for each window, zeros beyond its frames.
    """
    stream, held, offset = iter(blocks), np.zeros(0, np.float32), 0
    for window in windows:
        start, end = window.start * FRAME_SAMPLES, window.end * FRAME_SAMPLES
        parts = [held[start - offset :]]
        length = parts[0].size
        while length < end - start and (block := next(stream, None)) is not None:
            parts.append(block)
            length += block.size
        held, offset = np.concatenate(parts), start
        samples = np.zeros(window.bucket * FRAME_SAMPLES, np.float32)
        piece = held[: end - start]
        samples[: piece.size] = piece
        yield samples


def join(pieces: Iterable[tuple[Window, np.ndarray]]) -> Iterator[np.ndarray]:
    """Cross-fades decoded windows into one stream, as loud at the seams as elsewhere.

    Args:
      pieces: windows in order, each with its (bucket * 2560,) samples.

    Yields:
      float32 arrays that follow each other; together frames * 2560 samples.
    """
    tail = np.zeros(0, np.float32)
    for window, samples in pieces:
        overlap = window.overlap * FRAME_SAMPLES
        samples = samples[: window.frames * FRAME_SAMPLES].copy()
        if not window.first:
            samples[:overlap] = _cross_fade(tail, samples[:overlap])
        ready = samples.size if window.last else samples.size - overlap
        yield samples[:ready]
        tail = samples[ready:]


def _cross_fade(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """From old to new (S,), with the power of both in between, however much they are alike.

    a old + b new, where a + b = 1, has the power a² + b² + 2 a b r if r is their correlation. What
    is generated twice has phases that agree in part.
    """
    ramp = _ramp(old.size)
    both = ramp * (1.0 - ramp)
    faded = np.float64(both > 0)
    size = np.sqrt(np.dot(faded, np.square(old)) * np.dot(faded, np.square(new)))
    alike = np.clip(np.dot(faded, old * new) / size, 0.0, 1.0) if size > 0 else 1.0
    mixed = old * (1.0 - ramp) + new * ramp
    return (mixed / np.sqrt(1.0 - 2.0 * both * (1.0 - alike))).astype(np.float32)


@lru_cache(maxsize=1)
def _ramp(overlap: int) -> np.ndarray:
    """0 to 1 over the middle `FADE` frames of an overlap, flat outside."""
    fade = FADE * FRAME_SAMPLES
    position = np.arange(overlap) - (overlap - fade) / 2
    return np.clip((position + 0.5) / fade, 0.0, 1.0).astype(np.float32)
