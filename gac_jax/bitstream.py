"""The .gac container: tokens to bytes and back. docs/bitstream.md specifies it byte by byte.

Nothing here knows of networks. Whatever the input, reading returns valid tokens or raises
`UserError`, and allocates no more than a small multiple of the bytes it was given.
"""

from __future__ import annotations

import dataclasses
import operator
from binascii import crc_hqx

import numpy as np
import numpy.typing as npt

from gac_jax import rates
from gac_jax.errors import UserError

MAGIC = b"GAC"
VERSION = 1
FINGERPRINT_BYTES = 8
CHUNK_FRAMES = 128  # 10.24 s: one loudness level and one check
MAX_SAMPLES = 2**48 - 1  # 278 years

# Offsets of the header's fields. The low half of the rate byte is k, the high half is reserved.
_SAMPLES_AT, _RATE_AT, _CHECK_AT, _HEADER_BYTES = 12, 18, 19, 21
_CHECK_BYTES = 2
# From 0, CRC-16 would find a run of zero bytes (a hole in a disk image, say) to be in order.
_CHECK_START = 0xFFFF
_RETRY = "copy or download the file again"


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """What a clip is compressed to: the contents of one .gac file.

    Arrays are copied and made read-only, so tokens stay as valid as they were when built.

    Attributes:
        codes: (1 + k, N) int32. Row 0 holds semantic codes in [0, 2^14), the others residual
            codes in [0, 256), coarse to fine.
        num_samples: length of the audio at 32 kHz; N is this over 2,560, rounded up.
        levels: (ceil(N / 128),) uint8, the loudness of each block of 128 frames. 0 is digital
            silence; any other level is an RMS of (level - 240) / 2 dB re full scale.
        fingerprint: 8 bytes that name the encoder and quantiser the codes come from.

    Raises:
        ValueError: if a shape, range or length breaks these rules.
    """

    codes: npt.NDArray[np.int32]
    num_samples: int
    levels: npt.NDArray[np.uint8]
    fingerprint: bytes

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_samples", operator.index(self.num_samples))
        object.__setattr__(self, "codes", _frozen(self.codes, np.int32))
        object.__setattr__(self, "levels", _frozen(self.levels, np.uint8))
        if not 1 <= self.num_samples <= MAX_SAMPLES:
            raise ValueError(f"num_samples must be in 1..{MAX_SAMPLES}, not {self.num_samples}")
        if not isinstance(self.fingerprint, bytes) or len(self.fingerprint) != FINGERPRINT_BYTES:
            raise ValueError(f"fingerprint must be {FINGERPRINT_BYTES} bytes")
        frames = rates.num_frames(self.num_samples)
        rows = self.codes.shape[0] if self.codes.ndim == 2 else 0
        if not 1 <= rows <= 1 + rates.MAX_RESIDUAL or self.codes.shape[1] != frames:
            raise ValueError(f"codes must be (1..9, {frames}), not {self.codes.shape}")
        if self.levels.shape != (_ceil_div(frames, CHUNK_FRAMES),):
            raise ValueError(f"levels must be one for every 128 frames, not {self.levels.shape}")
        if self.codes.min() < 0 or self.codes[0].max() >= 2**rates.SEMANTIC_BITS:
            raise ValueError("semantic codes must be in [0, 2^14) and none negative")
        if rows > 1 and self.codes[1:].max() >= 2**rates.RESIDUAL_BITS:
            raise ValueError("residual codes must be in [0, 256)")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokens):
            return NotImplemented
        return (
            self.num_samples == other.num_samples
            and self.fingerprint == other.fingerprint
            and np.array_equal(self.levels, other.levels)
            and np.array_equal(self.codes, other.codes)
        )

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def __repr__(self) -> str:
        books, frames = self.codes.shape
        model = self.fingerprint.hex()
        shape = f"{books} x {frames} codes"
        return f"Tokens({shape}, {self.duration:.2f} s, {self.kbps:.3f} kbps, model {model})"

    @property
    def num_residuals(self) -> int:
        """Number k of residual codebooks, 0 to 8."""
        return self.codes.shape[0] - 1

    @property
    def num_frames(self) -> int:
        """Number N of code frames, 12.5 in a second."""
        return self.codes.shape[1]

    @property
    def duration(self) -> float:
        """Length of the audio in seconds."""
        return self.num_samples / rates.SAMPLE_RATE

    @property
    def kbps(self) -> float:
        """Nominal rate in kilobits a second: the codes alone, without the container."""
        return rates.kbps(self.num_residuals)

    def with_residuals(self, num_residuals: int) -> Tokens:
        """Returns the same tokens at a lower rate: only the first residual codebooks are kept.

        Args:
            num_residuals: how many to keep, from 0 to as many as there are.

        Raises:
            UserError: if there are not that many.
        """
        if not 0 <= num_residuals <= self.num_residuals:
            raise UserError(
                f"cannot keep {num_residuals} residual codebooks: these tokens have "
                f"{self.num_residuals} ({self.kbps:.3f} kbps); ask for no more than that, or "
                "encode the audio again at a higher rate"
            )
        return dataclasses.replace(self, codes=self.codes[: 1 + num_residuals])

    def to_bytes(self) -> bytes:
        """Returns the .gac file."""
        head = MAGIC + bytes([VERSION]) + self.fingerprint
        head += self.num_samples.to_bytes(_RATE_AT - _SAMPLES_AT, "little")
        head += bytes([self.num_residuals])
        check = crc_hqx(head, _CHECK_START)
        parts = [head, _check_bytes(check)]
        for index, level in enumerate(self.levels.tolist()):
            start = index * CHUNK_FRAMES
            chunk = bytes([level]) + _pack(self.codes[:, start : start + CHUNK_FRAMES])
            check = crc_hqx(chunk, check)
            parts += [chunk, _check_bytes(check)]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Tokens:
        """Reads a .gac file.

        Args:
            data: the whole file.

        Raises:
            UserError: if it is not a .gac file, is truncated or damaged, or needs a newer program.
        """
        data = bytes(data)
        num_samples, num_residuals = _read_header(data)
        # Before anything is allocated: the header may promise terabytes.
        size = file_size(num_samples, num_residuals)
        if len(data) < size:
            raise UserError(f"truncated: {len(data)} of {size} bytes; {_RETRY}")
        if len(data) > size:
            raise UserError(f"too long: {len(data) - size} bytes after the end at {size}; {_RETRY}")
        codes, levels = _read_chunks(data, rates.num_frames(num_samples), num_residuals)
        fingerprint = data[len(MAGIC) + 1 : _SAMPLES_AT]
        return cls(codes, num_samples, levels, fingerprint)


def file_size(num_samples: int, num_residuals: int) -> int:
    """Returns the exact size in bytes of a .gac file.

    Args:
        num_samples: length of the audio at 32 kHz.
        num_residuals: number k of residual codebooks.
    """
    full, rest = divmod(rates.num_frames(num_samples), CHUNK_FRAMES)
    size = _HEADER_BYTES + full * _chunk_size(CHUNK_FRAMES, num_residuals)
    return size + (_chunk_size(rest, num_residuals) if rest else 0)


def _chunk_size(frames: int, num_residuals: int) -> int:
    return 1 + _ceil_div(_num_bits(frames, num_residuals), 8) + _CHECK_BYTES


def _num_bits(frames: int, num_residuals: int) -> int:
    return frames * (rates.SEMANTIC_BITS + num_residuals * rates.RESIDUAL_BITS)


def _ceil_div(number: int, by: int) -> int:
    return -(-number // by)


def _check_bytes(check: int) -> bytes:
    return check.to_bytes(_CHECK_BYTES, "little")


def _frozen(values: npt.ArrayLike, dtype: npt.DTypeLike) -> npt.NDArray:
    """Copies integers to a read-only array; ValueError if they are not integers or do not fit."""
    given = np.asarray(values)
    if given.dtype.kind not in "iu":
        raise ValueError(f"codes and levels must be integers, not {given.dtype}")
    array = np.array(given, dtype, order="C")
    if not np.array_equal(array, given):
        raise ValueError(f"codes or levels do not fit {array.dtype}")
    array.setflags(write=False)
    return array


def _pack(codes: npt.NDArray[np.int32]) -> bytes:
    """Packs (1 + k, n) codes plane by plane, MSB first; zero bits fill the last byte."""
    words = np.unpackbits(codes[0].astype(">u2").view(np.uint8)).reshape(-1, 16)
    semantic = words[:, 16 - rates.SEMANTIC_BITS :]
    residual = np.unpackbits(codes[1:].astype(np.uint8))
    return np.packbits(np.concatenate([semantic.ravel(), residual])).tobytes()


def _unpack(payload: bytes, frames: int, num_residuals: int) -> npt.NDArray[np.int32]:
    """Inverse of `_pack`; padding is ignored."""
    bits = np.unpackbits(np.frombuffer(payload, np.uint8))
    semantic, residual = np.split(bits[: _num_bits(frames, num_residuals)], [_num_bits(frames, 0)])
    weights = 1 << np.arange(rates.SEMANTIC_BITS - 1, -1, -1, dtype=np.int32)
    first = semantic.reshape(1, frames, -1) @ weights
    return np.concatenate([first, np.packbits(residual).reshape(num_residuals, frames)])


def _read_header(data: bytes) -> tuple[int, int]:
    """Returns num_samples and k; UserError if this version cannot read what follows."""
    if data[: len(MAGIC)] != MAGIC:
        raise UserError("not a .gac file: it does not start with 'GAC'; choose another file")
    # The version comes first, because a later version may have another header.
    version = data[len(MAGIC)] if len(data) > len(MAGIC) else VERSION
    if version > VERSION:
        raise UserError(
            f"version {version} is newer than this program reads ({VERSION}); update gac_jax"
        )
    if len(data) < _HEADER_BYTES:
        raise UserError(f"truncated: {len(data)} of {_HEADER_BYTES} header bytes; {_RETRY}")
    check = _check_bytes(crc_hqx(data[:_CHECK_AT], _CHECK_START))
    if version < VERSION or data[_CHECK_AT:_HEADER_BYTES] != check:
        raise UserError(f"header damaged: checksum mismatch; {_RETRY}")
    num_residuals, reserved = data[_RATE_AT] & 0x0F, data[_RATE_AT] >> 4
    if reserved or num_residuals > rates.MAX_RESIDUAL:
        raise UserError(
            f"rate byte 0x{data[_RATE_AT]:02x} has a meaning that this program does not know; "
            "update gac_jax"
        )
    num_samples = int.from_bytes(data[_SAMPLES_AT:_RATE_AT], "little")
    if num_samples == 0:
        raise UserError("holds no audio: 0 samples; encode the audio again")
    return num_samples, num_residuals


def _read_chunks(
    data: bytes, frames: int, num_residuals: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Returns codes (1 + k, N) and levels of a file whose header and size are right."""
    codes = np.empty((1 + num_residuals, frames), np.int32)
    levels = np.empty(_ceil_div(frames, CHUNK_FRAMES), np.uint8)
    check = int.from_bytes(data[_CHECK_AT:_HEADER_BYTES], "little")
    offset = _HEADER_BYTES
    for index in range(len(levels)):
        block = slice(index * CHUNK_FRAMES, min((index + 1) * CHUNK_FRAMES, frames))
        length = block.stop - block.start
        end = offset + _chunk_size(length, num_residuals)
        chunk, stored = data[offset : end - _CHECK_BYTES], data[end - _CHECK_BYTES : end]
        check = crc_hqx(chunk, check)
        place = f"chunk {index + 1} of {len(levels)} damaged"
        if stored != _check_bytes(check):
            raise UserError(f"{place}: checksum mismatch; {_RETRY}")
        if chunk[-1] & ((1 << -_num_bits(length, num_residuals) % 8) - 1):
            raise UserError(f"{place}: padding bits are not zero; {_RETRY}")
        levels[index] = chunk[0]
        codes[:, block] = _unpack(chunk[1:], length, num_residuals)
        offset = end
    return codes, levels
