import math

import numpy as np
import pytest

from gac_jax.range_coder import LARGEST_TOTAL, RangeDecoder, RangeEncoder

Symbol = tuple[int, list[int]]  # which, of how many times each


def encoded(symbols: list[Symbol]) -> bytes:
    encoder = RangeEncoder()
    for which, counts in symbols:
        encoder.put(sum(counts[:which]), counts[which], sum(counts))
    return encoder.finish()


def decoded(data: bytes, tables: list[list[int]]) -> list[int]:
    decoder, found = RangeDecoder(data), []
    for counts in tables:
        target = decoder.target(sum(counts))
        which = int(np.searchsorted(np.cumsum(counts), target, side="right"))
        decoder.take(sum(counts[:which]), counts[which], sum(counts))
        found.append(which)
    return found


def draw(rng: np.random.Generator, count: int, size: int, largest: int) -> list[Symbol]:
    tables = rng.integers(1, largest, (count, size)).tolist()
    return [(int(rng.choice(size, p=np.array(t) / sum(t))), t) for t in tables]


@pytest.mark.parametrize("largest", [2, 1000, LARGEST_TOTAL // 5])
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_symbols_come_back_at_their_cost(
    count: int, largest: int, rng: np.random.Generator
) -> None:
    symbols = draw(rng, count, 5, largest)
    data = encoded(symbols)
    assert decoded(data, [table for _, table in symbols]) == [which for which, _ in symbols]
    cost = sum(math.log2(sum(table) / table[which]) for which, table in symbols)
    assert 8 * len(data) <= cost * (1 + 1e-4) + 9


def test_the_last_of_all_carries_through(rng: np.random.Generator) -> None:
    """The upper end of the interval, again and again: 0xFF bytes, and carries into them."""
    for last in (0, 1, 2):
        symbols: list[Symbol] = [(2, [1, 1, 2**38])] * 300 + [(last, [1, 1, 1])] * 9
        assert decoded(encoded(symbols), [t for _, t in symbols]) == [w for w, _ in symbols]


def test_what_is_certain_costs_nothing() -> None:
    assert encoded([(0, [7])] * 100) == b""
    assert encoded([]) == b""


def test_any_bytes_give_symbols(rng: np.random.Generator) -> None:
    for length in range(40):
        found = decoded(rng.bytes(length), [[1, 5, 2]] * 200)
        assert set(found) <= {0, 1, 2}
