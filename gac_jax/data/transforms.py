"""From a clip to one training example: a random crop at 32 kHz, scaled to unit loudness."""

from __future__ import annotations

import dataclasses
import threading

import grain
import numpy as np
import soundfile
from absl import logging

from gac_jax.data.sources import DOMAINS, Clip, Source
from gac_jax.data.text import TextTargets
from gac_jax.errors import UserError
from gac_jax.rates import SAMPLE_RATE
from gac_jax.signal.audio_io import to_mono_32k

# Read on either side of a crop and cut off after resampling, so that the resampler's filter does
# not ring at an edge that is none in the recording.
MARGIN_SECONDS = 0.02
# A crop below this RMS (-60 dB full scale) is a pause or a fade, and stays as quiet against the
# rest as it is there: scaled to unit RMS it would teach the models noise at full loudness.
QUIET_RMS = 1e-3

# What reading a clip may raise: a file that is missing, one that does not decode, a name that ends
# in .raw, and samples that are none or not finite.
UNREADABLE = (OSError, soundfile.SoundFileError, TypeError, UserError)

_unreadable: set[str] = set()
_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class RandomCrop(grain.transforms.RandomMap):
    """Reads a random crop of the clip with a given index, for `grain.MapDataset.random_map`.

    Attributes:
      source: where the clips are.
      crop_samples: S, length of a crop at 32 kHz.
      gain_jitter_db: crops are scaled to unit RMS, plus or minus a uniform draw up to this many dB.
      targets: makes the text that belongs to a crop; without it, examples have none.
    """

    source: Source
    crop_samples: int
    gain_jitter_db: float = 0.0
    targets: TextTargets | None = None

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
          `TextTargets.of` returns; a clip that cannot be read has nothing to say.
        """
        clip = self.source[element]
        try:
            audio, whole = _read(clip, self.crop_samples, rng)
        except UNREADABLE as error:
            _report_once(clip.path, error)
            audio, whole = np.zeros(0, np.float32), False
        wave = np.zeros(self.crop_samples, np.float32)
        wave[: len(audio)] = audio * self._gain(audio, rng)
        return {
            "wave": wave,
            "num_samples": np.asarray(len(audio), np.int32),
            "domain": np.asarray(DOMAINS.index(clip.domain), np.int32),
            "clip": np.asarray(element, np.int32),
            **self._text(clip, whole, bool(len(audio)), rng),
        }

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
      (n,) float32, mono at 32 kHz; n is less than `num_samples` only if the whole clip is.

    Raises:
      Exception: one of `UNREADABLE`.
    """
    return _read(clip, num_samples, rng)[0]


def _read(clip: Clip, num_samples: int, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """Does the work of `read_crop`, and tells whether the crop holds the whole clip."""
    with clip.open() as file:
        wanted = -(-num_samples * file.samplerate // SAMPLE_RATE)
        start = int(rng.integers(max(file.frames - wanted, 0) + 1))
        margin = min(start, int(MARGIN_SECONDS * file.samplerate))
        file.seek(start - margin)
        num_frames = margin + wanted + int(MARGIN_SECONDS * file.samplerate)
        audio = file.read(num_frames, dtype="float32", always_2d=True).mean(axis=1)
        wave = to_mono_32k(audio, file.samplerate)
        begin = round(margin * SAMPLE_RATE / file.samplerate)
        is_whole = file.frames <= wanted
    return wave[begin : begin + num_samples], is_whole


def _report_once(path: str, error: Exception) -> None:
    with _lock:
        if path in _unreadable:
            return
        _unreadable.add(path)
        count = len(_unreadable)
    logging.warning("unreadable clip %d, silence instead: %s: %s", count, path, error)
