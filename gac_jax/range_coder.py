"""Range coding (Martin, 1979): symbols to bytes, -log2 p bits each, and back.

All symbols so far name an interval of whole numbers, within which the next one chooses a part as
wide as it is likely. Python's integers have no upper bound, so that a carry needs no care: bytes
are cut off only when all symbols are in. It is meant for chunks of some thousand symbols, for the
time of a long one grows as its square.
"""

from __future__ import annotations

_RANGE_BITS = 64
_LEAST = 1 << (_RANGE_BITS - 8)
LARGEST_TOTAL = 1 << 40  # of frequencies; what division loses is then below 2^-16 of a symbol


class RangeEncoder:
    """Takes symbols in order."""

    def __init__(self) -> None:
        """Starts with the whole interval."""
        self._low, self._range, self._bytes = 0, 1 << _RANGE_BITS, 8

    def put(self, start: int, frequency: int, total: int) -> None:
        """Adds a symbol.

        Args:
          start: sum of the frequencies of all symbols before it.
          frequency: its own, at least 1.
          total: of all symbols, at most `LARGEST_TOTAL`.
        """
        share = self._range // total
        self._low += share * start
        self._range = share * frequency
        while self._range <= _LEAST:
            self._range <<= 8
            self._low <<= 8
            self._bytes += 1

    def finish(self) -> bytes:
        """The shortest bytes that name the interval; zeros at their end are left out."""
        for zeros in range(_RANGE_BITS, -1, -8):
            value = -(-self._low >> zeros) << zeros
            if value < self._low + self._range:
                return value.to_bytes(self._bytes, "big").rstrip(b"\0")
        raise AssertionError("an interval is never empty")


class RangeDecoder:
    """Gives symbols back in the order in which they were put."""

    def __init__(self, data: bytes) -> None:
        """Starts to read; beyond the end of the bytes there are zeros."""
        self._data, self._at = data, 8
        self._offset = int.from_bytes(data[:8].ljust(8, b"\0"), "big")  # from the interval's start
        self._range = 1 << _RANGE_BITS

    def target(self, total: int) -> int:
        """A number below `total` within the frequencies of the next symbol, see `take`."""
        return min(self._offset // (self._range // total), total - 1)

    def take(self, start: int, frequency: int, total: int) -> None:
        """Takes the symbol off, with what it was put with."""
        share = self._range // total
        self._offset -= share * start
        self._range = share * frequency
        while self._range <= _LEAST:
            self._range <<= 8
            byte = self._data[self._at] if self._at < len(self._data) else 0
            self._offset = self._offset << 8 | byte
            self._at += 1
