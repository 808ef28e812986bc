"""Walking through clips from end to end, for measurements: every piece once, in order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from typing import NamedTuple

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from gac_jax.data.pipeline import split
from gac_jax.data.sources import DOMAINS, Clip, Source, column
from gac_jax.data.transforms import MARGIN_SECONDS, QUIET_RMS, UNREADABLE
from gac_jax.errors import UserError
from gac_jax.rates import FRAME_SAMPLES, SAMPLE_RATE
from gac_jax.signal.audio_io import to_mono_32k

SPLITS = ("held_out", "train")


class Piece(NamedTuple):
    """A crop of a clip.

    Attributes:
      clip: place in the source.
      wave: (n,) float32 at 32 kHz, unit RMS, no longer than was asked for.
      is_first: whether the clip starts with it.
      is_whole: whether it is all of the clip.
    """

    clip: int
    wave: np.ndarray
    is_first: bool
    is_whole: bool


def choose(source: Source, data: ConfigDict, which: str, limit: int = 0) -> list[int]:
    """Picks clips of a split, the same at every call.

    Args:
      source: the clips.
      data: root, validation_percent and domain_weights; domains without weight are left out.
      which: one of `SPLITS`.
      limit: most clips to take, the same number of each domain as far as they go; 0 is all.

    Returns:
      Places in the source, in order.

    Raises:
      UserError: there are none.
    """
    training, held_out = split(source.clips, data.validation_percent)
    side = held_out if which == "held_out" else training
    rng, domains = np.random.default_rng(0), []
    names = column(source.clips, "domain")
    for name in DOMAINS:
        members = [i for i in side if names[i] == name]
        if data.domain_weights.get(name, 0) > 0:
            domains.append(rng.permutation(np.array(members, int)).tolist())
    in_turn = [i for i in chain.from_iterable(zip_longest(*domains)) if i is not None]
    if not in_turn:
        raise UserError(
            f"{data.root or 'bundled clips'}: no clip in the split {which}; change "
            "data.validation_percent or data.domain_weights, or take the other split"
        )
    return sorted(in_turn[: limit or None])


def walk(source: Source, indices: Sequence[int], num_samples: int) -> Iterator[Piece]:
    """Yields the pieces of clips, `num_samples` each but for a clip's last.

    A rest shorter than one code frame is left out, unless it is all of the clip. So is what cannot
    be read, and the log names the clip.
    """
    for index in indices:
        clip = source[index]
        try:
            yield from _pieces(index, clip, num_samples)
        except UNREADABLE as error:
            logging.warning("unreadable clip, left out: %s: %s", clip.path, error)


def _pieces(index: int, clip: Clip, num_samples: int) -> Iterator[Piece]:
    with clip.open() as file:
        rate = file.samplerate
        length = math.ceil(file.frames * SAMPLE_RATE / rate)
        is_whole = file.frames <= -(-num_samples * rate // SAMPLE_RATE)
        ends = 1 if is_whole else max(length - FRAME_SAMPLES + 1, 1)
        for begin in range(0, ends, num_samples):
            start = round(begin * rate / SAMPLE_RATE)
            margin = min(start, int(MARGIN_SECONDS * rate))
            file.seek(start - margin)
            wanted = margin + math.ceil(num_samples * rate / SAMPLE_RATE)
            audio = file.read(wanted + int(MARGIN_SECONDS * rate), dtype="float32", always_2d=True)
            wave = to_mono_32k(audio.mean(axis=1), rate)[round(margin * SAMPLE_RATE / rate) :]
            yield Piece(index, _unit_rms(wave[:num_samples]), begin == 0, is_whole)


def _unit_rms(wave: np.ndarray) -> np.ndarray:
    """Scales as training does; see `QUIET_RMS`."""
    rms = np.sqrt(np.mean(np.square(wave, dtype=np.float64)))
    return wave / np.float32(max(rms, QUIET_RMS))
