"""From a clip to one training example: a random crop at 32 kHz, scaled to unit loudness."""

from __future__ import annotations

import dataclasses
import math
import threading
from typing import NamedTuple

import grain
import numpy as np
import soundfile
from absl import logging

from gac_jax.bitstream import Tokens
from gac_jax.data.sources import DOMAINS, Clip, Source
from gac_jax.data.text import TextTargets
from gac_jax.data.tokens import TokenSource
from gac_jax.errors import UserError
from gac_jax.rates import FRAME_SAMPLES, SAMPLE_RATE
from gac_jax.signal.audio_io import to_16_bits, to_mono_32k
from gac_jax.signal.loudness import normalise

# Read on either side of a crop and cut off after resampling, so that the resampler's filter does
# not ring at an edge that is none in the recording.
MARGIN_SECONDS = 0.02
# An Opus file is decoded from its start up to a crop that begins no later than this. Its decoder of
# speech (SILK) feeds rounded output back into itself, and what it was before may never die away:
# of 360 crops of speech read after a seek, 197 were off, by up to 163 of 32,768, and to seek two
# seconds ahead did not mend all. Of the corpus, whose clips last 15 s at most, a core reads half as
# many crops of 1.28 s for it, 64 a second, and 8 % fewer of 10.24 s (benchmarks/pipeline.py).
OPUS_LEAD_SECONDS = 20.0
# A crop below this RMS (-60 dB full scale) is a pause or a fade, and stays as quiet against the
# rest as it is there: scaled to unit RMS it would teach the models noise at full loudness.
QUIET_RMS = 1e-3

# Samples at 32 kHz by which the length in a file's header may differ from that of its audio: an MP3
# may lack four frames of its own count.
LENGTH_TOLERANCE = 2 * FRAME_SAMPLES

# What reading a clip may raise: a file that is missing, one that does not decode, a name that ends
# in .raw, a damaged record of a packed data set, and samples that are none or not finite.
UNREADABLE = (OSError, soundfile.SoundFileError, TypeError, RuntimeError, UserError)

_unreadable: set[str] = set()
_lock = threading.Lock()


class OtherRecordingError(UserError):
    """The codes of a clip were made of another recording: none of a corpus can be trusted then."""


class Crop(NamedTuple):
    """A piece of a clip.

    Attributes:
      wave: (n,) float32 at 32 kHz.
      whole: whether it is all of the clip.
      codes: (K, frames) int32, None without tokens.
    """

    wave: np.ndarray
    whole: bool
    codes: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class RandomCrop(grain.transforms.RandomMap):
    """Reads a random crop of the clip with a given index, for `grain.MapDataset.random_map`.

    Attributes:
      source: where the clips are.
      crop_samples: S, length of a crop at 32 kHz.
      gain_jitter_db: crops are scaled to unit RMS, plus or minus a uniform draw up to this many dB.
      targets: makes the text that belongs to a crop; without it, examples have none.
      tokens: codes of the clips. With it, crops start where a code frame does, and are scaled by
        the loudness curve of their clip, as what the codes were made of: then gain_jitter_db
        has no effect, for the codes would not tell of it.

    Raises:
      ValueError: if there are tokens and `crop_samples` is no multiple of 2,560.
    """

    source: Source
    crop_samples: int
    gain_jitter_db: float = 0.0
    targets: TextTargets | None = None
    tokens: TokenSource | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None and self.crop_samples % FRAME_SAMPLES:
            raise ValueError(f"crops of {self.crop_samples} samples are not whole code frames")

    def random_map(self, element: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Reads one example.

        A clip shorter than the crop comes first and zeros follow. A clip that cannot be read comes
        out as all zeros with `num_samples` 0, and is named once in the log.

        Args:
          element: index of the clip in the source.
          rng: draws the place of the crop and its gain, then what is asked about it.

        Returns:
          wave (S,) float32; num_samples () int32, samples of the wave that are audio; domain ()
          int32, place in `DOMAINS`; clip () int32, the index. With targets also what
          `TextTargets.of` returns; a clip that cannot be read has nothing to say. With tokens also
          codes (K, S / 2560) int32, zeros where the clip has ended.

        Raises:
          OtherRecordingError: the clip's codes are of a recording of another length.
        """
        clip, crop = self.source.clips[element], Crop(np.zeros(0, np.float32), False)
        try:
            clip = self.source[element]
            crop = self._crop(clip, rng)
        except OtherRecordingError:
            raise
        except UNREADABLE as error:
            _report_once(clip.path, error)
        wave = np.zeros(self.crop_samples, np.float32)
        wave[: len(crop.wave)] = crop.wave
        return {
            "wave": wave,
            "num_samples": np.asarray(len(crop.wave), np.int32),
            "domain": np.asarray(DOMAINS.index(clip.domain), np.int32),
            "clip": np.asarray(element, np.int32),
            **self._text(clip, crop.whole, bool(len(crop.wave)), rng),
            **self._codes(crop.codes),
        }

    def _crop(self, clip: Clip, rng: np.random.Generator) -> Crop:
        if self.tokens is not None:
            return read_coded_crop(clip, self.tokens.of(clip.path), self.crop_samples, rng)
        wave, whole = _read(clip, self.crop_samples, rng)
        return Crop(wave * self._gain(wave, rng), whole)

    def _codes(self, found: np.ndarray | None) -> dict[str, np.ndarray]:
        if self.tokens is None:
            return {}
        shape = (len(self.tokens.about.codebook_sizes), self.crop_samples // FRAME_SAMPLES)
        codes = np.zeros(shape, np.int32)
        if found is not None:
            codes[:, : found.shape[1]] = found
        return {"codes": codes}

    def _text(
        self, clip: Clip, whole: bool, readable: bool, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        if self.targets is None:
            return {}
        return self.targets.of(clip, whole, rng) if readable else self.targets.none()

    def _gain(self, audio: np.ndarray, rng: np.random.Generator) -> np.float32:
        """Returns the factor that brings the crop to unit RMS plus the jitter."""
        jitter_db = rng.uniform(-self.gain_jitter_db, self.gain_jitter_db)
        rms = np.sqrt(np.mean(np.square(audio, dtype=np.float64))) if len(audio) else 0.0
        return np.float32(10 ** (jitter_db / 20) / max(rms, QUIET_RMS))


def read_crop(clip: Clip, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Reads a uniformly placed crop of a clip, without decoding the rest of it.

    Args:
      clip: the recording, of any sample rate and channel count.
      num_samples: length of the crop at 32 kHz.
      rng: draws the place.

    Returns:
      (n,) float32, mono at 32 kHz, rounded to 16 bits; n is less than `num_samples` only if the
      whole clip is.

    Raises:
      Exception: one of `UNREADABLE`.
    """
    return _read(clip, num_samples, rng)[0]


def read_coded_crop(clip: Clip, tokens: Tokens, num_samples: int, rng: np.random.Generator) -> Crop:
    """Reads a crop of a clip that starts where a code frame does, with its codes.

    The codes were made of the whole clip, as a sender does it, so that those at the ends of a crop
    know what is beyond.

    Args:
      clip: the recording.
      tokens: its codes.
      num_samples: length of the crop at 32 kHz, a multiple of 2,560.
      rng: draws the place.

    Returns:
      wave, divided by the clip's loudness curve, and codes; both shorter only at the clip's end.

    Raises:
      OtherRecordingError: the codes are of a recording of another length.
      Exception: one of `UNREADABLE`.
    """
    frames = num_samples // FRAME_SAMPLES
    first = int(rng.integers(max(tokens.num_frames - frames, 0) + 1))
    start = first * FRAME_SAMPLES
    with clip.open() as file:
        length = _length(file)
        if abs(length - tokens.num_samples) > LENGTH_TOLERANCE:
            raise OtherRecordingError(
                f"{clip.path}: is {length / SAMPLE_RATE:.2f} s long, but its codes are of "
                f"{tokens.duration:.2f} s; tokenise the corpus that is trained on"
            )
        wave = _read_at(file, start, num_samples)
    wave = wave[: tokens.num_samples - start]
    codes = tokens.codes[:, first : first + frames]
    return Crop(normalise(wave, tokens.levels, start), tokens.num_frames <= frames, codes)


def _read(clip: Clip, num_samples: int, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """Does the work of `read_crop`, and tells whether the crop holds the whole clip."""
    with clip.open() as file:
        length = _length(file)
        start = int(rng.integers(max(length - num_samples, 0) + 1))
        return _read_at(file, start, num_samples), length <= num_samples


def _length(file: soundfile.SoundFile) -> int:
    """Samples at 32 kHz: those that resampling the whole file would give."""
    return (2 * file.frames * SAMPLE_RATE + file.samplerate) // (2 * file.samplerate)


def _read_at(file: soundfile.SoundFile, start: int, num_samples: int) -> np.ndarray:
    """Reads (n,) samples at 32 kHz from a place on, which counts those of the resampled whole."""
    rate = file.samplerate
    common = math.gcd(rate, SAMPLE_RATE)
    # The grid of the resampled whole meets that of the file every `step` samples of the file. From
    # such a place on, the resampler gives what it gives from the start.
    step, target_step = rate // common, SAMPLE_RATE // common
    reach = step * max(round(MARGIN_SECONDS * rate / step), 1)
    first = max(start // target_step * step - reach, 0)
    skipped = first // step * target_step
    stop = -(-(start + num_samples) * rate // SAMPLE_RATE) + reach
    if file.subtype == "OPUS" and first <= OPUS_LEAD_SECONDS * rate:
        audio = file.read(stop, dtype="float32", always_2d=True)[first:]
    else:
        file.seek(first)
        audio = file.read(stop - first, dtype="float32", always_2d=True)
    wave = to_mono_32k(audio.mean(axis=1), rate)[start - skipped :][:num_samples]
    # As a packed data set keeps it. The noise of 16 bits is louder than the empty bands of a codec,
    # which log-mels see: left out, losses of the two differ by 0.1 % (docs/scaling.md).
    return to_16_bits(wave).astype(np.float32) / 2**15


def _report_once(path: str, error: Exception) -> None:
    with _lock:
        if path in _unreadable:
            return
        _unreadable.add(path)
        count = len(_unreadable)
    logging.warning("unreadable clip %d, silence instead: %s: %s", count, path, error)
