"""Audio files to mono 32 kHz and back, through libsndfile and soxr, in constant memory.

Reads WAV, FLAC, Ogg Vorbis, Opus and MP3 (and what else libsndfile knows) of any sample rate and
channel count; writes the first five.
"""

from __future__ import annotations

import math
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from gac_jax.errors import UserError
from gac_jax.rates import SAMPLE_RATE

# (libsndfile format, subtype, sample rate in the file) by extension. Opus knows no 32 kHz.
_WRITABLE = {
    ".wav": ("WAV", "PCM_16", SAMPLE_RATE),
    ".flac": ("FLAC", "PCM_16", SAMPLE_RATE),
    ".ogg": ("OGG", "VORBIS", SAMPLE_RATE),
    ".opus": ("OGG", "OPUS", 48_000),
    ".mp3": ("MP3", "MPEG_LAYER_III", SAMPLE_RATE),
}
LOWEST_RATE = 1_000  # Hz; from far below it resampling takes gigabytes, and soxr crashes at last
_BLOCK = 65_536  # samples per channel in memory; libsndfile's Vorbis crashes on blocks of millions
_QUALITY = "HQ"  # soxr: 20-bit precision
_UNKNOWN_FRAMES = 1 << 62  # libsndfile says at least this where a header leaves the length open
_WAV_UNKNOWN_BYTES = 0x7FFF_0000  # and a WAV written to a pipe claims this or more
_MISSING_FRAMES = 4 * 1152  # that an MP3 may lack of its own count: encoders differ on padding
_OGG_MAX_PAGE = 27 + 255 + 255 * 255


def read_audio(path: str | Path) -> np.ndarray:
    """Reads a whole file as mono float32 (S,) at 32 kHz.

    Raises:
      UserError: if the file cannot be read, see `AudioReader`.
    """
    return np.concatenate(list(AudioReader(path)))


class AudioReader:
    """A file as a stream of mono 32 kHz blocks; each iteration decodes it anew from the start.

    Attributes:
      path: the file.
      source_rate: sample rate of the file in Hz.
      duration: length in seconds by the file's header, `math.inf` where that leaves it open.
    """

    def __init__(self, path: str | Path) -> None:
        """Looks at the header.

        Raises:
          UserError: if the file is missing, is not audio, is empty, is cut short or has a sample
            rate below `LOWEST_RATE`.
        """
        self.path = Path(path)
        with _open(self.path) as file:
            self.source_rate: int = file.samplerate
            if self.source_rate < LOWEST_RATE:
                raise UserError(f"{self.path}: {_too_low(self.source_rate)}")
            known = file.frames < _UNKNOWN_FRAMES
            self.duration = file.frames / file.samplerate if known else math.inf
            if _is_cut_short(self.path, file):
                raise self._cut_short()
        if self.duration * SAMPLE_RATE < 1:
            raise UserError(f"{self.path} holds no audio: it is empty or cut short; copy it again")

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields float32 (S,) blocks of about 65,536 samples at most, in order.

        Raises:
          UserError: if the file is damaged, cut short, or holds NaN or infinite samples.
        """
        stream = _Resampler(self.source_rate, SAMPLE_RATE)
        read = 0
        with _open(self.path) as file:
            expected = _declared_frames(self.path, file)
            while len(block := self._read_block(file)):
                if not np.isfinite(block).all():
                    raise UserError(
                        f"{self.path} holds NaN or infinite samples around "
                        f"{read / self.source_rate:.1f} s: export it again"
                    )
                yield stream(block)
                read += len(block)
        if read < expected - _MISSING_FRAMES:
            raise self._cut_short()
        yield stream.flush()

    def _read_block(self, file: soundfile.SoundFile) -> np.ndarray:
        try:
            return file.read(_BLOCK, dtype="float32", always_2d=True).mean(axis=1)
        except soundfile.SoundFileError as error:
            raise self._cut_short() from error

    def _cut_short(self) -> UserError:
        return UserError(f"{self.path} is damaged or cut short: copy or download it again")


class AudioWriter:
    """Writes mono 32 kHz blocks to a file, which appears under its name when it is complete.

    The extension chooses the format: .wav and .flac with 16 bits, .ogg (Vorbis), .mp3, and .opus,
    which is resampled to 48 kHz. A file of that name is replaced. Use it in a `with` statement: an
    exception inside leaves no file behind, and a file of that name as it was.

    Attributes:
      path: the file to come.
      clipped: samples beyond full scale so far, which are written as +-1.
    """

    def __init__(self, path: str | Path) -> None:
        """Checks that the file can be written.

        Raises:
          UserError: if the extension is unknown or there is no folder to write to.
        """
        self.path = Path(path)
        self.clipped = 0
        if self.path.suffix.lower() not in _WRITABLE:
            known = ", ".join(_WRITABLE)
            raise UserError(f"cannot write {self.path}: name it with one of {known}")
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise UserError(f"cannot write {self.path}: give a file in a folder that exists")
        self._draft = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")

    def __enter__(self) -> AudioWriter:
        """Opens a hidden draft beside the file to come."""
        container, subtype, rate = _WRITABLE[self.path.suffix.lower()]
        self._resample = _Resampler(SAMPLE_RATE, rate)
        try:
            self._file = soundfile.SoundFile(
                self._draft, "w", rate, channels=1, format=container, subtype=subtype
            )
        except soundfile.SoundFileError as error:
            raise self._unwritable() from error
        return self

    def write(self, block: np.ndarray) -> None:
        """Appends float32 (S,) samples at 32 kHz.

        Raises:
          UserError: if the file system refuses them.
          ValueError: if a sample is NaN or infinite.
        """
        block = np.asarray(block, np.float32)
        if not np.isfinite(block).all():
            raise ValueError("samples to write must be finite")
        self._append(self._resample(block))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Completes the file, or removes the draft if there was an exception."""
        try:
            with self._file:
                if kind is None:
                    self._append(self._resample.flush())
            if kind is None:
                os.replace(self._draft, self.path)
        except (OSError, soundfile.SoundFileError) as failure:
            raise self._unwritable() from failure
        finally:
            self._draft.unlink(missing_ok=True)

    def _append(self, wave: np.ndarray) -> None:
        self.clipped += int(np.count_nonzero(np.abs(wave) > 1))
        clipped = np.clip(wave, -1, 1)
        try:
            for start in range(0, len(clipped), _BLOCK):
                self._file.write(clipped[start : start + _BLOCK])
        except soundfile.SoundFileError as error:
            raise self._unwritable() from error

    def _unwritable(self) -> UserError:
        return UserError(f"cannot write {self.path}: check the folder's permissions and free space")


def resample(wave: np.ndarray, from_rate: float, to_rate: float) -> np.ndarray:
    """Resamples (S,) to float32 (round(S * to_rate / from_rate),)."""
    wave = np.asarray(wave, np.float32)
    return wave if from_rate == to_rate else soxr.resample(wave, from_rate, to_rate, _QUALITY)


def to_mono_32k(wave: npt.ArrayLike, sample_rate: float) -> np.ndarray:
    """Brings an array of audio to the codec's form.

    Args:
      wave: (S,) or (channels, S) floats, full scale +-1.
      sample_rate: Hz.

    Returns:
      (S',) float32 at 32 kHz, the mean of the channels.

    Raises:
      UserError: if the array is empty, of another shape or type, or not finite, or the sample rate
        below `LOWEST_RATE`.
    """
    wave = np.asarray(wave)
    if wave.dtype.kind not in "fV":  # V: bfloat16
        raise UserError(f"audio must be floats of full scale 1, not {wave.dtype}: convert it first")
    if wave.ndim not in (1, 2) or (wave.ndim == 2 and wave.shape[0] > wave.shape[1]):
        raise UserError(f"audio must be shaped (samples,) or (channels, samples), not {wave.shape}")
    if not LOWEST_RATE <= sample_rate < math.inf:
        raise UserError(_too_low(sample_rate))
    if not wave.size or wave.shape[-1] * SAMPLE_RATE < sample_rate:
        raise UserError("audio holds no samples: give at least one at 32 kHz")
    mono = np.atleast_2d(wave).astype(np.float32).mean(axis=0)
    if not np.isfinite(mono).all():
        raise UserError("audio holds NaN or infinite samples: repair it first")
    return resample(mono, sample_rate, SAMPLE_RATE)


def _too_low(sample_rate: float) -> str:
    return f"the sample rate must be a finite number from {LOWEST_RATE:,} Hz on, not {sample_rate}"


def to_16_bits(wave: np.ndarray) -> np.ndarray:
    """Rounds floats to the int16 samples of a 16-bit file; beyond full scale they are clipped."""
    return np.clip(np.round(wave * 2**15), -(2**15), 2**15 - 1).astype(np.int16)


class _Resampler:
    """Resamples a mono stream of blocks of any size."""

    def __init__(self, from_rate: float, to_rate: float) -> None:
        stream = soxr.ResampleStream(from_rate, to_rate, 1, "float32", _QUALITY)
        self._stream = stream if from_rate != to_rate else None

    def __call__(self, block: np.ndarray) -> np.ndarray:
        return self._stream.resample_chunk(block) if self._stream else block

    def flush(self) -> np.ndarray:
        """Returns what the filter still holds."""
        empty = np.zeros(0, np.float32)
        return self._stream.resample_chunk(empty, last=True) if self._stream else empty


class _SoundFile(soundfile.SoundFile):
    """A sound file that is read from start to end.

    soundfile seeks to where it already is after each block, and in an MP3 that loses the bits that
    a frame keeps in the frame before: an audible error at every seam. Files that do not seek are
    spared.
    """

    def seekable(self) -> bool:
        return False


def _open(path: Path) -> soundfile.SoundFile:
    try:
        path.open("rb").close()  # the system's reason is clearer than libsndfile's
        return _SoundFile(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot read {path}: {reason}; give the path of an audio file") from error
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a name that ends in .raw
        raise UserError(
            f"{path} is empty or in no known audio format: give WAV, FLAC, Ogg, Opus or MP3"
        ) from error


def _is_cut_short(path: Path, file: soundfile.SoundFile) -> bool:
    """Tells whether a file ends early where libsndfile would pass over it in silence."""
    if file.format == "OGG":
        return _ends_inside_ogg_page(path)
    declared = re.search(r"^data : (\d+) \(should be \d+\)", file.extra_info, re.MULTILINE)
    return declared is not None and int(declared[1]) < _WAV_UNKNOWN_BYTES


def _ends_inside_ogg_page(path: Path) -> bool:
    """Looks for the last page (RFC 3533, section 6) and whether all of it is there."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _OGG_MAX_PAGE))
        tail = file.read()
    page = tail[max(tail.rfind(b"OggS"), 0) :]
    num_segments = page[26] if len(page) > 26 else 0
    return len(page) < 27 + num_segments + sum(page[27 : 27 + num_segments])


def _declared_frames(path: Path, file: soundfile.SoundFile) -> int:
    """Samples per channel that the file must hold, 0 if it does not say.

    An MP3 says so only in a Xing or Info tag. Without one libsndfile guesses from its first frames,
    and where an MP3 of variable bit rate is longer than that, reads no further.
    """
    if file.frames >= _UNKNOWN_FRAMES:
        return 0
    if file.format != "MP3":
        return file.frames
    with path.open("rb") as mp3:
        header = mp3.read(10)
        if header.startswith(b"ID3"):  # its length has seven bits to the byte
            mp3.seek(10 + sum(byte << 7 * (3 - i) for i, byte in enumerate(header[6:])))
        frame = mp3.read(256)
    return file.frames if b"Xing" in frame or b"Info" in frame else 0
