"""Loudness: one level byte per 10.24 s of audio, and the smooth gain that they describe.

Encoding divides by the gain curve and decoding multiplies by it, so that the networks only see
audio of about unit RMS. Decoded blocks are measured, too, and brought to their levels. A level byte
is 0 for digital silence; otherwise a block's RMS is (byte - 240) / 2 dB re full scale, -119.5 to
+7.5 dB.
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
_MOST_OFF = 12.0  # dB; what is further off has failed, and a gain will not mend it
_SCRAP = BLOCK_SAMPLES // 10  # shorter ends of a stream say little of how loud it is decoded


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


def gain_curve(
    levels: np.ndarray, start: int, length: int, correction: np.ndarray | float = 0.0
) -> np.ndarray:
    """Interpolates levels to a gain per sample, linearly in dB between the centres of blocks.

    The gain is constant before the first centre and after the last, and 0 inside silent blocks,
    which the interpolation passes over.

    Args:
      levels: uint8 level bytes of all blocks of the stream.
      start: first sample wanted, counted at 32 kHz from the start of the stream.
      length: samples wanted; they may reach beyond the last block, which then goes on.
      correction: in dB, added to levels.

    Returns:
      (length,) float32 linear gain.
    """
    sounding = np.flatnonzero(levels)
    if not len(sounding):
        return np.zeros(length, np.float32)
    samples = np.arange(start, start + length)
    centres = (sounding + 0.5) * BLOCK_SAMPLES
    decibels = (levels.astype(np.float64) - _FULL_SCALE) / _STEPS_PER_DB + correction
    gain = 10 ** (np.interp(samples + 0.5, centres, decibels[sounding]) / 20)
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
    """Gives decoded audio the loudness that its levels tell, and ends at the last sample.

    What is decoded is of about unit RMS only. How far a block with its gain is from its level is
    made up for, up to 12 dB either way. A block whose level is no measurement of its own goes by
    the block before.

    Args:
      blocks: float32 waves of about unit RMS, one after the other; 10.24 s of them are held back.
      levels: of the whole clip.
      num_samples: length of the clip.
    """
    own, correction = _own(levels, num_samples), np.zeros(len(levels))
    held, position = np.zeros(0, np.float32), 0
    for index, block in enumerate(_regrouped(blocks, num_samples)):
        start = index * BLOCK_SAMPLES
        if own[index]:
            power = _energy(block * gain_curve(levels, start, block.size)) / block.size
            off = (int(levels[index]) - _steps(power)) / _STEPS_PER_DB
            correction[index:] = np.clip(off, -_MOST_OFF, _MOST_OFF)
        held = np.concatenate([held, block])
        ready = min(start + BLOCK_SAMPLES // 2 - position, held.size)  # up to the centre
        yield held[:ready] * gain_curve(levels, position, ready, correction)
        held, position = held[ready:], position + ready
    yield held * gain_curve(levels, position, held.size, correction)


def _regrouped(blocks: Iterable[np.ndarray], num_samples: int) -> Iterator[np.ndarray]:
    """The first samples of a stream, in blocks that share a level."""
    begun, left = np.zeros(0, np.float32), num_samples
    for block in blocks:
        begun = np.concatenate([begun, block])
        while left and begun.size >= min(BLOCK_SAMPLES, left):
            whole, begun = np.split(begun, [min(BLOCK_SAMPLES, left)])
            yield whole
            left -= whole.size


def _own(levels: np.ndarray, num_samples: int) -> np.ndarray:
    """Which levels measure their blocks (bool): not silent, not raised, not a scrap at the end."""
    sizes = num_samples - BLOCK_SAMPLES * np.arange(len(levels))
    sizes[:1] = BLOCK_SAMPLES  # a first block has none to go by
    return (levels > 0) & (levels > _beside(levels)) & (sizes >= _SCRAP)


def _energy(wave: np.ndarray) -> float:
    return float(np.sum(np.square(wave, dtype=np.float64)))


def _steps(power: np.ndarray | float) -> np.ndarray:
    """Mean squares in half decibels, full scale at 240, not rounded."""
    return _STEPS_PER_DB * 10 * np.log10(np.maximum(power, 1e-30)) + _FULL_SCALE


def _quantise(power: np.ndarray) -> np.ndarray:
    """Level bytes of mean squares; what lies below -119.75 dB rounds to 0, silence."""
    return np.clip(np.round(_steps(power)), 0, _LOUDEST).astype(np.uint8)


def _beside(levels: np.ndarray) -> np.ndarray:
    """The least that each level may be for the sake of the others, int64; silence has to fall."""
    fall, levels = _MAX_STEP * np.arange(len(levels)), levels.astype(np.int64)
    least = np.zeros(len(levels), np.int64)
    least[1:] = np.maximum.accumulate(levels + fall)[:-1] - fall[1:]
    after = np.maximum.accumulate((levels - fall)[::-1])[::-1] + fall
    least[:-1] = np.maximum(least[:-1], after[1:] - _MAX_STEP)
    return least


def _limit_steps(levels: np.ndarray) -> np.ndarray:
    """Raises levels that fall too far below a neighbour, also across silence."""
    return np.where(levels > 0, np.maximum(levels, _beside(levels)), 0).astype(np.uint8)
