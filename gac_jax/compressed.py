"""The compressed .gac container: tokens under an entropy coder. docs/bitstream.md specifies it.

Its checks are those of the codes and not of the bytes, so that they also find out whether the
receiver's coder foresaw what the sender's did. Nothing here knows of networks.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from gac_jax.bitstream import (
    CHECK_BYTES,
    CHUNK_FRAMES,
    HEADER_BYTES,
    RETRY,
    Header,
    Tokens,
    check_bytes,
    plain_chunk,
    read_header,
    start_check,
)
from gac_jax.errors import UserError

DIGEST_BYTES = 2
_LENGTH_BYTES = 2
Codes = npt.NDArray[np.int32]


class Coder(Protocol):
    """What turns chunks of codes into bytes and back, knowing those before.

    Attributes:
      digest: 2 bytes that name it.
    """

    digest: bytes

    def encode(self, chunks: Iterable[Codes], num_residuals: int) -> Iterator[bytes]:
        """Bytes of each chunk of codes (1 + k, n)."""
        ...

    def decode(
        self, chunks: Iterable[tuple[bytes, int]], num_residuals: int
    ) -> Iterator[tuple[Codes, bytes]]:
        """Codes of each chunk of bytes, given with its number of frames; of any bytes at all.

        With the codes comes what `encode` makes of them.
        """
        ...


class _Chunk(NamedTuple):
    level: int
    payload: bytes
    frames: int
    check: bytes


def to_bytes(tokens: Tokens, coder: Coder) -> bytes:
    """Writes tokens as a compressed file."""
    header = tokens.header(compressed=True)
    check = start_check(header)
    parts = [header.to_bytes(), check_bytes(check), coder.digest]
    check = crc_hqx(coder.digest, check)
    payloads = coder.encode((codes for _, codes in tokens.chunks()), tokens.num_residuals)
    for (level, codes), payload in zip(tokens.chunks(), payloads, strict=True):
        check = crc_hqx(plain_chunk(level, codes), check)
        length = len(payload).to_bytes(_LENGTH_BYTES, "little")
        parts += [bytes([level]), length, payload, check_bytes(check)]
    del parts[-3]  # the last chunk's length: it ends where the file does
    return b"".join(parts)


def from_bytes(data: bytes, coder: Coder) -> Tokens:
    """Reads a compressed file.

    Raises:
      UserError: it is not one, is truncated or damaged, or another coder wrote it.
    """
    header = read_header(data)
    if not header.compressed:
        raise UserError("not compressed: read it as tokens are read")
    start = HEADER_BYTES + DIGEST_BYTES
    digest = data[HEADER_BYTES:start]
    if len(digest) < DIGEST_BYTES:
        raise UserError(f"truncated: {len(data)} of at least {start} bytes; {RETRY}")
    if digest != coder.digest:
        raise UserError(
            f"compressed by entropy model {digest.hex()}, but this model's is "
            f"{coder.digest.hex()}; read it with the model that compressed it"
        )
    chunks = _split(data, start, header)
    check, parts = crc_hqx(digest, start_check(header)), []
    decoded = coder.decode(((c.payload, c.frames) for c in chunks), header.num_residuals)
    for index, (chunk, (codes, again)) in enumerate(zip(chunks, decoded, strict=True)):
        check = crc_hqx(plain_chunk(chunk.level, codes), check)
        if check_bytes(check) != chunk.check or again != chunk.payload:
            place = f"chunk {index + 1} of {len(chunks)} damaged"
            raise UserError(f"{place}: checksum mismatch; {RETRY}")
        parts.append(codes)
    levels = np.array([chunk.level for chunk in chunks], np.uint8)
    return Tokens(np.concatenate(parts, axis=1), header.num_samples, levels, header.fingerprint)


def _split(data: bytes, at: int, header: Header) -> list[_Chunk]:
    """The chunks of a file, as far as their lengths tell; there is memory for what is there."""
    chunks: list[_Chunk] = []
    count = -(-header.num_frames // CHUNK_FRAMES)
    while len(chunks) < count:
        frames = min(CHUNK_FRAMES, header.num_frames - CHUNK_FRAMES * len(chunks))
        begin = at + 1 + _LENGTH_BYTES
        end = begin + int.from_bytes(data[at + 1 : begin], "little")
        if len(chunks) + 1 == count:
            begin, end = at + 1, len(data) - CHECK_BYTES
        if begin > end or len(data) < end + CHECK_BYTES:
            raise UserError(f"truncated in chunk {len(chunks) + 1} of {count}; {RETRY}")
        chunks.append(_Chunk(data[at], data[begin:end], frames, data[end : end + CHECK_BYTES]))
        at = end + CHECK_BYTES
    return chunks
