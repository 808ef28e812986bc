"""Loudness: one level byte per 10.24 s of audio, and the smooth gain that they describe.

Encoding divides by the gain curve and decoding multiplies by it, so that the networks only see
audio of about unit RMS. A level byte is 0 for digital silence; otherwise a block's RMS is
(byte - 240) / 2 dB re full scale, -119.5 to +7.5 dB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from gac_jax.rates import FRAME_SAMPLES

BLOCK_FRAMES = 128  # code frames that share a level
BLOCK_SAMPLES = BLOCK_FRAMES * FRAME_SAMPLES

_STEPS_PER_DB = 2
_FULL_SCALE = 240  # the level byte of 0 dB
_LOUDEST = 255
_MAX_STEP = 24


def block_levels(blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, int]:
    """Measures a stream of audio.

    Between neighbouring blocks the level moves by 12 dB at most: the quieter one is raised, or the
    gain curve, already falling towards it, would let the end of the loud one grow without bound.

    Args:
      blocks: mono 32 kHz arrays (S,) of any lengths, in order.

    Returns:
      levels, uint8 (ceil(frames / 128),), and the number of samples in the stream.
    """
    energies: list[float] = []
    num_samples = 0
    for wave in blocks:
        room = -num_samples % BLOCK_SAMPLES  # left in the block begun before
        begun, *new = np.split(wave, np.arange(room, len(wave), BLOCK_SAMPLES))
        if energies:
            energies[-1] += _energy(begun)
        energies.extend(map(_energy, new))
        num_samples += len(wave)
    sizes = np.minimum(num_samples - BLOCK_SAMPLES * np.arange(len(energies)), BLOCK_SAMPLES)
    return _limit_steps(_quantise(np.array(energies) / sizes)), num_samples


def gain_curve(levels: np.ndarray, start: int, length: int) -> np.ndarray:
    """Interpolates levels to a gain per sample, linearly in dB between the centres of blocks.

    The gain is constant before the first centre and after the last, and 0 inside silent blocks,
    which the interpolation passes over.

    Args:
      levels: uint8 level bytes of all blocks of the stream.
      start: first sample wanted, counted at 32 kHz from the start of the stream.
      length: samples wanted; they may reach beyond the last block, which then goes on.

    Returns:
      (length,) float32 linear gain.
    """
    sounding = np.flatnonzero(levels)
    if not len(sounding):
        return np.zeros(length, np.float32)
    samples = np.arange(start, start + length)
    centres = (sounding + 0.5) * BLOCK_SAMPLES
    decibels = (levels[sounding].astype(np.float64) - _FULL_SCALE) / _STEPS_PER_DB
    gain = 10 ** (np.interp(samples + 0.5, centres, decibels) / 20)
    block = np.minimum(samples // BLOCK_SAMPLES, len(levels) - 1)
    return np.where(levels[block] > 0, gain, 0).astype(np.float32)


def normalise(wave: np.ndarray, levels: np.ndarray, start: int) -> np.ndarray:
    """Divides a piece of a stream by its gain curve; silent blocks become zero.

    Args:
      wave: (S,) float32.
      levels: uint8 level bytes of all blocks of the stream.
      start: place of the piece, in samples from the start of the stream.

    Returns:
      (S,) float32 of about unit RMS.
    """
    gain = gain_curve(levels, start, len(wave))
    return np.divide(wave, gain, out=np.zeros_like(wave), where=gain > 0)


def restored(
    blocks: Iterable[np.ndarray], levels: np.ndarray, num_samples: int
) -> Iterator[np.ndarray]:
    """Gives decoded blocks their loudness back and ends at the last sample.

    Args:
      blocks: float32 waves of about unit RMS, one after the other.
      levels: of the whole clip.
      num_samples: length of the clip.
    """
    position = 0
    for block in blocks:
        block = block[: num_samples - position]
        yield block * gain_curve(levels, position, block.size)
        position += block.size


def _energy(wave: np.ndarray) -> float:
    return float(np.sum(np.square(wave, dtype=np.float64)))


def _quantise(power: np.ndarray) -> np.ndarray:
    """Level bytes of mean squares; what lies below -119.75 dB rounds to 0, silence."""
    decibels = 10 * np.log10(np.maximum(power, 1e-30))
    steps = np.round(_STEPS_PER_DB * decibels) + _FULL_SCALE
    return np.clip(steps, 0, _LOUDEST).astype(np.uint8)


def _limit_steps(levels: np.ndarray) -> np.ndarray:
    """Raises levels that fall too far below a neighbour, also across silence."""
    raised = levels.astype(np.int64)
    for i in range(1, len(raised)):
        raised[i] = max(raised[i], raised[i - 1] - _MAX_STEP)
    for i in range(len(raised) - 2, -1, -1):
        raised[i] = max(raised[i], raised[i + 1] - _MAX_STEP)
    return np.where(levels > 0, raised, 0).astype(np.uint8)
