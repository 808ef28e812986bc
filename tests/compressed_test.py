from binascii import crc_hqx
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from gac_jax import compressed
from gac_jax.bitstream import HEADER_BYTES, Tokens, check_bytes, start_check
from gac_jax.compressed import Codes
from gac_jax.errors import UserError


class Pairs:
    """Stands for an entropy coder: two bytes a code, and any bytes have codes."""

    def __init__(self, digest: bytes = b"hf") -> None:
        self.digest = digest

    def encode(self, chunks: Iterable[Codes], num_residuals: int) -> Iterator[bytes]:
        for codes in chunks:
            assert len(codes) == 1 + num_residuals
            yield codes.astype("<u2").tobytes()

    def decode(
        self, chunks: Iterable[tuple[bytes, int]], num_residuals: int
    ) -> Iterator[tuple[Codes, bytes]]:
        for data, frames in chunks:
            size = 2 * frames * (1 + num_residuals)
            found = np.frombuffer(data[:size].ljust(size, b"\0"), "<u2").astype(np.int32)
            codes = found.reshape(1 + num_residuals, frames)
            codes = codes % np.array([2**14] + [256] * num_residuals)[:, None]
            yield codes, codes.astype("<u2").tobytes()


def draw(rng: np.random.Generator, frames: int, num_residuals: int) -> Tokens:
    residual = rng.integers(0, 256, (num_residuals, frames))
    return Tokens(
        codes=np.concatenate([rng.integers(0, 2**14, (1, frames)), residual]),
        num_samples=frames * 2560 - 5,
        levels=rng.integers(0, 256, -(-frames // 128), np.uint8),
        fingerprint=rng.bytes(8),
    )


@pytest.mark.parametrize("num_residuals", [0, 1, 8])
@pytest.mark.parametrize("frames", [1, 127, 128, 129, 300])
def test_tokens_come_back(frames: int, num_residuals: int, rng: np.random.Generator) -> None:
    tokens = draw(rng, frames, num_residuals)
    data = compressed.to_bytes(tokens, Pairs())
    assert compressed.from_bytes(data, Pairs()) == tokens
    payloads = 2 * frames * (1 + num_residuals)
    assert len(data) == HEADER_BYTES + 2 + payloads + 5 * len(tokens.levels) - 2


def test_its_layout_is_as_specified(rng: np.random.Generator) -> None:
    tokens = draw(rng, 2, 1)
    data, plain = compressed.to_bytes(tokens, Pairs()), tokens.to_bytes()
    assert data[:18] == plain[:18] and data[18] == plain[18] | 0x10
    assert data[21:23] == b"hf" and data[23] == tokens.levels[0]
    assert data[24:32] == tokens.codes.astype("<u2").tobytes()
    covered = data[:19] + b"hf" + bytes(tokens.levels) + plain[22:-2]
    assert data[32:] == crc_hqx(covered, 0xFFFF).to_bytes(2, "little")
    longer = compressed.to_bytes(draw(rng, 129, 0), Pairs())
    assert longer[24:26] == (256).to_bytes(2, "little")  # of the first chunk's payload
    assert len(longer) == 23 + (1 + 2 + 256 + 2) + (1 + 2 + 2)


def test_every_truncation_is_found(rng: np.random.Generator) -> None:
    data = compressed.to_bytes(draw(rng, 130, 1), Pairs())
    for length in range(len(data)):
        with pytest.raises(UserError):
            compressed.from_bytes(data[:length], Pairs())


def test_every_damaged_byte_is_found(rng: np.random.Generator) -> None:
    data = compressed.to_bytes(draw(rng, 130, 1), Pairs())
    for at in range(len(data)):
        with pytest.raises(UserError):
            compressed.from_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :], Pairs())


def test_errors_say_what_is_wrong(rng: np.random.Generator) -> None:
    tokens = draw(rng, 130, 1)
    data = compressed.to_bytes(tokens, Pairs())
    for spoilt, message in {
        data + b"\0": "chunk 2 of 2 damaged: checksum mismatch; copy",
        data[:-2] + b"\0" + data[-2:]: "chunk 2 of 2 damaged: checksum mismatch; copy",
        data[:-1]: "chunk 2 of 2 damaged: checksum mismatch; copy",
        data[:500]: "truncated in chunk 1 of 2; copy",
        data[:22]: "truncated: 22 of at least 23 bytes; copy",
        data[:-2] + b"ab": "chunk 2 of 2 damaged: checksum mismatch; copy",
        tokens.to_bytes(): "not compressed",
    }.items():
        with pytest.raises(UserError, match=message):
            compressed.from_bytes(spoilt, Pairs())
    with pytest.raises(UserError, match="by entropy model 6866, but this model's is 6f74"):
        compressed.from_bytes(data, Pairs(b"ot"))


def test_a_coder_that_foresaw_something_else_is_found_out(rng: np.random.Generator) -> None:
    class Other(Pairs):
        def decode(
            self, chunks: Iterable[tuple[bytes, int]], num_residuals: int
        ) -> Iterator[tuple[Codes, bytes]]:
            for codes, again in super().decode(chunks, num_residuals):
                yield codes ^ (codes == codes.max()), again

    data = compressed.to_bytes(draw(rng, 9, 1), Pairs())
    with pytest.raises(UserError, match="chunk 1 of 1 damaged"):
        compressed.from_bytes(data, Other())


def test_a_promise_of_terabytes_takes_no_memory(rng: np.random.Generator) -> None:
    long = draw(rng, 1, 0).header(compressed=True)._replace(num_samples=2**48 - 1)
    data = long.to_bytes() + check_bytes(start_check(long)) + b"hf" + bytes(5)
    with pytest.raises(UserError, match="truncated in chunk 2 of"):
        compressed.from_bytes(data, Pairs())
