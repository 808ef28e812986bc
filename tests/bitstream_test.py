import json
import re
import tracemalloc
from binascii import crc_hqx
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gac_jax import rates
from gac_jax.bitstream import MAX_SAMPLES, Tokens, file_size
from gac_jax.errors import UserError

GOLDEN = Path(__file__).parent / "golden"
DOCS = Path(__file__).parents[1] / "docs" / "bitstream.md"
HEADER_BYTES = 21
FINGERPRINT = bytes.fromhex("0011223344556677")
EVERY_K = range(rates.MAX_RESIDUAL + 1)


def build(**changes: Any) -> Tokens:
    """Builds tokens of three frames, some fields of which are given."""
    fields: dict[str, Any] = {"codes": [[1, 2, 3]], "num_samples": 7000, "levels": [200]}
    return Tokens(**({**fields, "fingerprint": FINGERPRINT} | changes))


def random_tokens(rng: np.random.Generator, frames: int, num_residuals: int) -> Tokens:
    """Draws tokens whose last frame is partial."""
    semantic = rng.integers(0, 2**14, (1, frames))
    residual = rng.integers(0, 256, (num_residuals, frames))
    return Tokens(
        codes=np.concatenate([semantic, residual]),
        num_samples=frames * 2560 - int(rng.integers(2560)),
        levels=rng.integers(0, 256, -(-frames // 128), np.uint8),
        fingerprint=rng.bytes(8),
    )


def slow_crc(data: bytes) -> bytes:
    """CRC-16/CCITT-FALSE, one bit at a time."""
    register = 0xFFFF
    for byte in data:
        register ^= byte << 8
        for _ in range(8):
            register = (register << 1 ^ (0x1021 if register & 0x8000 else 0)) & 0xFFFF
    return register.to_bytes(2, "little")


def slow_file(tokens: Tokens) -> bytes:
    """Writes a file as docs/bitstream.md says, with strings of binary digits."""
    covered = b"GAC\x01" + tokens.fingerprint
    covered += tokens.num_samples.to_bytes(6, "little") + bytes([len(tokens.codes) - 1])
    file = covered + slow_crc(covered)
    for index, level in enumerate(tokens.levels.tolist()):
        semantic, *residual = tokens.codes[:, 128 * index : 128 * (index + 1)].tolist()
        bits = "".join(f"{code:014b}" for code in semantic)
        bits += "".join(f"{code:08b}" for plane in residual for code in plane)
        bits += "0" * (-len(bits) % 8)
        chunk = bytes([level]) + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
        covered += chunk
        file += chunk + slow_crc(covered)
    return file


def repaired(data: bytes) -> bytes:
    """Puts right the checks of a file, so that other faults can be seen behind them."""
    head = data[: HEADER_BYTES - 2]
    check = crc_hqx(head, 0xFFFF)
    file = head + check.to_bytes(2, "little")
    frames = -(-int.from_bytes(data[12:18], "little") // 2560)
    while len(file) < len(data) and frames > 0:
        bits = min(frames, 128) * (14 + 8 * (data[18] & 15))
        chunk = data[len(file) : len(file) + 1 + -(-bits // 8)]
        check = crc_hqx(chunk, check)
        file += chunk + check.to_bytes(2, "little")
        frames -= 128
    return file


def edited(data: bytes, offset: int, *values: int) -> bytes:
    return data[:offset] + bytes(values) + data[offset + len(values) :]


@pytest.mark.parametrize("num_residuals", EVERY_K)
@pytest.mark.parametrize("frames", [1, 2, 3, 127, 128, 129, 300])
def test_files_are_as_specified(frames: int, num_residuals: int, rng: np.random.Generator) -> None:
    tokens = random_tokens(rng, frames, num_residuals)
    data = tokens.to_bytes()
    assert data == slow_file(tokens)
    assert len(data) == file_size(tokens.num_samples, num_residuals)
    assert Tokens.from_bytes(data) == tokens


def test_version_1_golden_file() -> None:
    data = (GOLDEN / "v1.gac").read_bytes()
    expected = json.loads((GOLDEN / "v1.json").read_text())
    tokens = Tokens.from_bytes(data)
    assert tokens.fingerprint.hex() == expected["fingerprint"]
    assert tokens.num_samples == expected["num_samples"]
    assert tokens.levels.tolist() == expected["levels"]
    assert tokens.codes.tolist() == expected["codes"]
    assert tokens.to_bytes() == data


def test_worked_example_of_the_docs() -> None:
    text = DOCS.read_text(encoding="utf-8").split("## Worked example")[1]
    scope: dict[str, Any] = {"Tokens": Tokens, "np": np}
    python = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert python is not None
    exec(python[1], scope)
    data = scope["tokens"].to_bytes()
    rows = re.findall(r"^ +(\d+)  ((?:[0-9a-f]{2} )+)", text, re.MULTILINE)
    assert b"".join(bytes.fromhex(row) for _, row in rows) == data
    for offset, row in rows:
        assert data[int(offset) :].startswith(bytes.fromhex(row))
    codes = "".join(re.findall(r"^([01 ]{6,})(?: |$)", text, re.MULTILINE)).replace(" ", "")
    assert int(codes, 2).to_bytes(9) == data[22:31]


def test_size_table_of_the_docs() -> None:
    number = r" ([\d.,]+) \|"
    rows = re.findall(rf"^\|{number * 5}$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    ten_minutes = 600 * rates.SAMPLE_RATE
    chunk = 128 * rates.FRAME_SAMPLES
    sizes = [(file_size(chunk, k) - HEADER_BYTES, file_size(ten_minutes, k)) for k in EVERY_K]
    assert rows == [
        (f"{k}", f"{rates.kbps(k):.3f}", f"{full:,}", f"{size:,}", f"{size * 8 / 600e3:.4f}")
        for k, (full, size) in enumerate(sizes)
    ]


@pytest.mark.parametrize("num_residuals", EVERY_K)
def test_ten_minutes_take_the_nominal_rate(num_residuals: int, rng: np.random.Generator) -> None:
    tokens = random_tokens(rng, 7500, num_residuals)
    measured = len(tokens.to_bytes()) * 8 / tokens.duration / 1000
    assert tokens.kbps == pytest.approx(0.175 + 0.1 * num_residuals)
    assert tokens.kbps < measured < 1.025 * tokens.kbps


@pytest.mark.parametrize("num_residuals", EVERY_K)
def test_overhead_is_24_bytes_and_2_percent(num_residuals: int) -> None:
    for frames in range(1, 1000):
        codes = -(-frames * (14 + 8 * num_residuals) // 8)
        assert file_size(frames * rates.FRAME_SAMPLES, num_residuals) <= 24 + 1.02 * codes


@pytest.mark.parametrize("num_residuals", [0, 3])
def test_every_flipped_bit_is_found(num_residuals: int, rng: np.random.Generator) -> None:
    data = random_tokens(rng, 131, num_residuals).to_bytes()
    for bit in range(8 * len(data)):
        with pytest.raises(UserError):
            Tokens.from_bytes(edited(data, bit // 8, data[bit // 8] ^ 1 << bit % 8))


def test_every_truncation_is_found(rng: np.random.Generator) -> None:
    data = random_tokens(rng, 131, 1).to_bytes()
    for size in range(len(data)):
        fault = "not a .gac file" if size < 3 else f"truncated: {size} of "
        with pytest.raises(UserError, match=re.escape(fault)):
            Tokens.from_bytes(data[:size])


def test_moved_and_foreign_chunks_are_found(rng: np.random.Generator) -> None:
    data = random_tokens(rng, 384, 0).to_bytes()
    other = random_tokens(rng, 384, 0).to_bytes()
    first, second, third = (slice(21 + 227 * i, 21 + 227 * (i + 1)) for i in range(3))
    with pytest.raises(UserError, match="chunk 1 of 3 damaged"):
        Tokens.from_bytes(data[:21] + data[second] + data[first] + data[third])
    with pytest.raises(UserError, match="chunk 2 of 3 damaged"):
        Tokens.from_bytes(data[:248] + other[second] + data[third])


def test_a_hole_of_zeros_is_found(rng: np.random.Generator) -> None:
    data = random_tokens(rng, 384, 0).to_bytes()
    with pytest.raises(UserError, match="chunk 3 of 3 damaged: checksum mismatch"):
        Tokens.from_bytes(data[:-227] + bytes(227))
    with pytest.raises(UserError, match="header damaged"):
        Tokens.from_bytes(data[:4] + bytes(len(data) - 4))


FAULTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "not a .gac file: it does not start with 'GAC'; choose another"),
    "wav": (lambda data: b"RIFF" + data[4:], "not a .gac file"),
    "newer": (lambda data: b"GAC\x02", r"version 2 is newer than this program reads \(1\); update"),
    "version 0": (lambda data: repaired(edited(data, 3, 0)), "header damaged"),
    "k of 9": (lambda data: repaired(edited(data, 18, 9)), "rate byte 0x09 .* update gac_jax"),
    "reserved": (lambda data: repaired(edited(data, 18, 0x21)), "rate byte 0x21 .* update gac_jax"),
    "compressed": (lambda data: repaired(edited(data, 18, 0x11)), "compressed, .* Codec.read, or"),
    "no samples": (lambda data: repaired(edited(data, 12, *bytes(6))), "no audio: 0 samples"),
    "header only": (lambda data: data[:21], "truncated: 21 of 33 bytes; copy or download"),
    "longer": (lambda data: data + b"\n", "too long: 1 bytes after the end at 33; copy"),
    "damaged": (lambda data: edited(data, 21, 7), "chunk 1 of 1 damaged: checksum mismatch; copy"),
    "padding": (lambda data: repaired(edited(data, 30, 0x41)), "padding bits are not zero; copy"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_errors_say_what_is_wrong(fault: str, rng: np.random.Generator) -> None:
    spoil, message = FAULTS[fault]
    data = random_tokens(rng, 3, 1).to_bytes()
    with pytest.raises(UserError, match=message) as error:
        Tokens.from_bytes(spoil(data))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_samples", [10**8, 2**40, MAX_SAMPLES])
def test_absurd_sizes_are_refused_before_allocation(
    num_samples: int, rng: np.random.Generator
) -> None:
    data = random_tokens(rng, 3, 8).to_bytes()
    data = repaired(edited(data, 12, *num_samples.to_bytes(6, "little")))
    tracemalloc.start()
    with pytest.raises(UserError, match=f"truncated: {len(data)} of \\d+ bytes"):
        Tokens.from_bytes(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000


def flip(data: bytes, rng: np.random.Generator) -> bytes:
    for _ in range(rng.integers(1, 9)):
        at = int(rng.integers(len(data)))
        data = edited(data, at, data[at] ^ 1 << int(rng.integers(8)))
    return data


def truncate(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(len(data))]


def insert(data: bytes, rng: np.random.Generator) -> bytes:
    at = rng.integers(len(data))
    return data[:at] + rng.bytes(int(rng.integers(1, 300))) + data[at:]


def remove(data: bytes, rng: np.random.Generator) -> bytes:
    at = rng.integers(len(data))
    return data[:at] + data[at + rng.integers(1, 300) :]


def extend(data: bytes, rng: np.random.Generator) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 300)))


def edit_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Overwrites one field, with extremes among the values, and puts the checks right."""
    start, stop = [(0, 3), (3, 4), (4, 12), (12, 18), (16, 18), (12, 14), (18, 19)][rng.integers(7)]
    size = stop - start
    value = [bytes(size), b"\xff" * size, rng.bytes(size)][rng.integers(3)]
    return repaired(edited(data, start, *value))


def edit_size(data: bytes, rng: np.random.Generator) -> bytes:
    """Changes num_samples by up to a frame or k by one, and puts the checks right."""
    samples = int.from_bytes(data[12:18], "little") + int(rng.integers(-2560, 2561))
    data = edited(data, 12, *max(samples, 0).to_bytes(6, "little"))
    return repaired(edited(data, 18, data[18] ^ int(rng.integers(2))))


def edit_codes(data: bytes, rng: np.random.Generator) -> bytes:
    """Flips bits anywhere and puts the checks right."""
    return repaired(flip(data, rng))


def test_fuzz(rng: np.random.Generator) -> None:
    mutations = (flip, truncate, insert, remove, extend, edit_header, edit_size, edit_codes)
    shapes = [(1, 0), (3, 1), (131, 0), (129, 2), (257, 8)]
    files = [random_tokens(rng, frames, k).to_bytes() for frames, k in shapes]
    accepted = 0
    tracemalloc.start()
    for index in range(10_000):
        data = mutations[index % len(mutations)](files[rng.integers(len(files))], rng)
        try:
            tokens = Tokens.from_bytes(data)
        except UserError as error:
            assert re.search(r"; (choose|copy|update|encode)|; update|Codec\.read", str(error))
        else:
            accepted += 1
            assert tokens.to_bytes() == data
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 500 < accepted < 5_000  # both ways were walked
    assert peak < 500_000


def test_bytes_like_input(rng: np.random.Generator) -> None:
    tokens = random_tokens(rng, 131, 2)
    data = tokens.to_bytes()
    assert Tokens.from_bytes(memoryview(bytearray(data))) == tokens


def test_with_residuals_drops_the_finest(rng: np.random.Generator) -> None:
    tokens = random_tokens(rng, 131, 4)
    fewer = tokens.with_residuals(1)
    assert np.array_equal(fewer.codes, tokens.codes[:2])
    assert (fewer.num_residuals, fewer.kbps) == (1, rates.kbps(1))
    assert fewer.num_samples == tokens.num_samples
    assert fewer.fingerprint == tokens.fingerprint
    assert np.array_equal(fewer.levels, tokens.levels)
    assert tokens.with_residuals(4) == tokens
    for impossible in (5, -1):
        with pytest.raises(UserError, match=r"these tokens have 4 \(0.575 kbps\)"):
            tokens.with_residuals(impossible)


def test_properties() -> None:
    tokens = build(codes=[[1, 2, 3], [4, 5, 6]])
    assert (tokens.num_residuals, tokens.num_frames) == (1, 3)
    assert (tokens.duration, tokens.kbps) == (7000 / 32000, 0.275)
    assert (tokens.codes.dtype, tokens.levels.dtype) == (np.int32, np.uint8)
    assert repr(tokens) == ("Tokens(2 x 3 codes, 0.22 s, 0.275 kbps, model 0011223344556677)")


def test_equality_is_by_value() -> None:
    assert build() == build()
    assert len({build(), build(num_samples=np.int64(7000))}) == 1
    for other in (
        build(codes=[[1, 2, 4]]),
        build(codes=[[1, 2, 3], [1, 2, 3]]),
        build(num_samples=7001),
        build(levels=[8]),
        build(fingerprint=bytes(8)),
        "tokens",
    ):
        assert build() != other


def test_tokens_cannot_be_changed() -> None:
    codes = np.zeros((1, 3), np.int32)
    tokens = build(codes=codes)
    codes[0, 0] = 5
    assert tokens.codes[0, 0] == 0
    for array in (tokens.codes, tokens.levels):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": [[1, 2]]}, r"codes must be \(1..9, 3\)"),
        ({"codes": [1, 2, 3]}, r"codes must be \(1..9, 3\)"),
        ({"codes": np.zeros((0, 3), int)}, r"codes must be \(1..9, 3\)"),
        ({"codes": np.zeros((10, 3), int)}, r"codes must be \(1..9, 3\)"),
        ({"codes": [[1, 2, 2**14]]}, "semantic codes"),
        ({"codes": [[1, 2, -1]]}, "none negative"),
        ({"codes": [[1, 2, 3], [0, 0, 256]]}, "residual codes"),
        ({"codes": [[1, 2, 3], [0, 0, -1]]}, "none negative"),
        ({"codes": [[1, 2, 2**32]]}, "do not fit int32"),
        ({"codes": [[1.0, 2.0, 3.0]]}, "must be integers, not float64"),
        ({"num_samples": 0}, "num_samples must be in 1.."),
        ({"num_samples": -5}, "num_samples must be in 1.."),
        ({"num_samples": 2**48}, "num_samples must be in 1.."),
        ({"levels": [1, 2]}, "levels must be one for every 128 frames"),
        ({"levels": [256]}, "do not fit uint8"),
        ({"fingerprint": b"short"}, "fingerprint must be 8 bytes"),
        ({"fingerprint": "01234567"}, "fingerprint must be 8 bytes"),
    ],
)
def test_invalid_tokens_cannot_be_built(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)
