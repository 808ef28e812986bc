"""The .gac container: tokens to bytes and back. docs/bitstream.md specifies it byte by byte.

Nothing here knows of networks. Whatever the input, reading returns valid tokens or raises
`UserError`, and allocates no more than a small multiple of the bytes it was given.
"""

from __future__ import annotations

import dataclasses
import operator
from binascii import crc_hqx
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gac_jax import rates
from gac_jax.errors import UserError

MAGIC = b"GAC"
VERSION = 1
FINGERPRINT_BYTES = 8
CHUNK_FRAMES = 128  # 10.24 s: one loudness level and one check
MAX_SAMPLES = 2**48 - 1  # 278 years

# Offsets of the header's fields. The low half of the rate byte is k, the high half the variant.
_SAMPLES_AT, _RATE_AT, _CHECK_AT, HEADER_BYTES = 12, 18, 19, 21
CHECK_BYTES = 2
# From 0, CRC-16 would find a run of zero bytes (a hole in a disk image, say) to be in order.
_CHECK_START = 0xFFFF
RETRY = "copy or download the file again"
_COMPRESSED = 1  # variant: chunks hold codes under an entropy coder


class Header(NamedTuple):
    """What the first 21 bytes say.

    Attributes:
        num_samples: length of the audio at 32 kHz, at least 1.
        num_residuals: number k of residual codebooks, 0 to 8.
        compressed: whether chunks are as `gac_jax.compressed` reads them.
        fingerprint: 8 bytes that name the encoder and quantiser.
    """

    num_samples: int
    num_residuals: int
    compressed: bool
    fingerprint: bytes

    @property
    def num_frames(self) -> int:
        """Number N of code frames."""
        return rates.num_frames(self.num_samples)

    @property
    def duration(self) -> float:
        """Length of the audio in seconds."""
        return self.num_samples / rates.SAMPLE_RATE

    def to_bytes(self) -> bytes:
        """The header but for its check."""
        head = MAGIC + bytes([VERSION]) + self.fingerprint
        head += self.num_samples.to_bytes(_RATE_AT - _SAMPLES_AT, "little")
        return head + bytes([self.num_residuals | _COMPRESSED * self.compressed << 4])


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
        header = self.header()
        check = start_check(header)
        parts = [header.to_bytes(), check_bytes(check)]
        for level, codes in self.chunks():
            chunk = plain_chunk(level, codes)
            check = crc_hqx(chunk, check)
            parts += [chunk, check_bytes(check)]
        return b"".join(parts)

    def header(self, compressed: bool = False) -> Header:
        """Returns the header of the file."""
        return Header(self.num_samples, self.num_residuals, compressed, self.fingerprint)

    def chunks(self) -> Iterator[tuple[int, npt.NDArray[np.int32]]]:
        """Yields the level and the codes (1 + k, n) of each chunk."""
        for index, level in enumerate(self.levels.tolist()):
            start = index * CHUNK_FRAMES
            yield level, self.codes[:, start : start + CHUNK_FRAMES]

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Tokens:
        """Reads a .gac file.

        Args:
            data: the whole file.

        Raises:
            UserError: if it is not a .gac file, is truncated, damaged or compressed, or needs a
                newer program.
        """
        data = bytes(data)
        header = read_header(data)
        if header.compressed:
            raise UserError(
                "compressed, so that a model must read it: Codec.read, or python -m gac_jax.sample "
                "--mode=decode"
            )
        num_samples, num_residuals = header.num_samples, header.num_residuals
        # Before anything is allocated: the header may promise terabytes.
        size = file_size(num_samples, num_residuals)
        if len(data) < size:
            raise UserError(f"truncated: {len(data)} of {size} bytes; {RETRY}")
        if len(data) > size:
            raise UserError(f"too long: {len(data) - size} bytes after the end at {size}; {RETRY}")
        codes, levels = _read_chunks(data, rates.num_frames(num_samples), num_residuals)
        return cls(codes, num_samples, levels, header.fingerprint)


def file_size(num_samples: int, num_residuals: int) -> int:
    """Returns the exact size in bytes of a .gac file.

    Args:
        num_samples: length of the audio at 32 kHz.
        num_residuals: number k of residual codebooks.
    """
    full, rest = divmod(rates.num_frames(num_samples), CHUNK_FRAMES)
    size = HEADER_BYTES + full * _chunk_size(CHUNK_FRAMES, num_residuals)
    return size + (_chunk_size(rest, num_residuals) if rest else 0)


def _chunk_size(frames: int, num_residuals: int) -> int:
    return 1 + _ceil_div(_num_bits(frames, num_residuals), 8) + CHECK_BYTES


def _num_bits(frames: int, num_residuals: int) -> int:
    return frames * (rates.SEMANTIC_BITS + num_residuals * rates.RESIDUAL_BITS)


def _ceil_div(number: int, by: int) -> int:
    return -(-number // by)


def start_check(header: Header) -> int:
    """Returns the running check after a header."""
    return crc_hqx(header.to_bytes(), _CHECK_START)


def check_bytes(check: int) -> bytes:
    """Returns a check as it stands in files."""
    return check.to_bytes(CHECK_BYTES, "little")


def plain_chunk(level: int, codes: npt.NDArray[np.int32]) -> bytes:
    """Returns the chunk of a level and codes (1 + k, n), without its check."""
    return bytes([level]) + _pack(codes)


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


def read_header(data: bytes) -> Header:
    """Reads the first bytes of a .gac file; UserError if this version cannot read what follows."""
    if data[: len(MAGIC)] != MAGIC:
        raise UserError("not a .gac file: it does not start with 'GAC'; choose another file")
    # The version comes first, because a later version may have another header.
    version = data[len(MAGIC)] if len(data) > len(MAGIC) else VERSION
    if version > VERSION:
        raise UserError(
            f"version {version} is newer than this program reads ({VERSION}); update gac_jax"
        )
    if len(data) < HEADER_BYTES:
        raise UserError(f"truncated: {len(data)} of {HEADER_BYTES} header bytes; {RETRY}")
    check = check_bytes(crc_hqx(data[:_CHECK_AT], _CHECK_START))
    if version < VERSION or data[_CHECK_AT:HEADER_BYTES] != check:
        raise UserError(f"header damaged: checksum mismatch; {RETRY}")
    num_residuals, variant = data[_RATE_AT] & 0x0F, data[_RATE_AT] >> 4
    if variant > _COMPRESSED or num_residuals > rates.MAX_RESIDUAL:
        raise UserError(
            f"rate byte 0x{data[_RATE_AT]:02x} has a meaning that this program does not know; "
            "update gac_jax"
        )
    num_samples = int.from_bytes(data[_SAMPLES_AT:_RATE_AT], "little")
    if num_samples == 0:
        raise UserError("holds no audio: 0 samples; encode the audio again")
    fingerprint = data[len(MAGIC) + 1 : _SAMPLES_AT]
    return Header(num_samples, num_residuals, variant == _COMPRESSED, fingerprint)


def _read_chunks(
    data: bytes, frames: int, num_residuals: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Returns codes (1 + k, N) and levels of a file whose header and size are right."""
    codes = np.empty((1 + num_residuals, frames), np.int32)
    levels = np.empty(_ceil_div(frames, CHUNK_FRAMES), np.uint8)
    check = int.from_bytes(data[_CHECK_AT:HEADER_BYTES], "little")
    offset = HEADER_BYTES
    for index in range(len(levels)):
        block = slice(index * CHUNK_FRAMES, min((index + 1) * CHUNK_FRAMES, frames))
        length = block.stop - block.start
        end = offset + _chunk_size(length, num_residuals)
        chunk, stored = data[offset : end - CHECK_BYTES], data[end - CHECK_BYTES : end]
        check = crc_hqx(chunk, check)
        place = f"chunk {index + 1} of {len(levels)} damaged"
        if stored != check_bytes(check):
            raise UserError(f"{place}: checksum mismatch; {RETRY}")
        if chunk[-1] & ((1 << -_num_bits(length, num_residuals) % 8) - 1):
            raise UserError(f"{place}: padding bits are not zero; {RETRY}")
        levels[index] = chunk[0]
        codes[:, block] = _unpack(chunk[1:], length, num_residuals)
        offset = end
    return codes, levels
