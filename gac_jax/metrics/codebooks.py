"""How evenly the codes of each codebook are used, counted over whole clips.

Perplexity and utilisation are those that papers on vector quantisation report; bits are the
entropy of the codes one by one, which an ideal coder without memory would spend on each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

ALL = "all"  # stands for every domain


@dataclasses.dataclass(frozen=True)
class Usage:
    """Use of one codebook.

    Attributes:
      domain: one domain, or `ALL`.
      codebook: semantic, or residual 1, 2, ...
      size: codes that there are.
      frames: code frames that were counted.
      used: codes that occur.
      bits: entropy of the codes, in bits; at most log2 of `size`, and of `frames`.
    """

    domain: str
    codebook: str
    size: int
    frames: int
    used: int
    bits: float

    @property
    def share(self) -> float:
        """Codes that occur, of all."""
        return self.used / self.size

    @property
    def perplexity(self) -> float:
        """Number of codes, in even use, that would be as varied."""
        return float(2.0**self.bits)


def count_codes(
    codes: np.ndarray,
    frames: np.ndarray,
    domain: np.ndarray,
    sizes: Sequence[int],
    num_domains: int,
) -> list[np.ndarray]:
    """Counts the codes of a batch.

    Args:
      codes: (B, K, N) int.
      frames: (B,) int, the code frames that count.
      domain: (B,) int, below `num_domains`.
      sizes: codes of each of the K codebooks.
      num_domains: D.

    Returns:
      For each codebook (D, size) int64; the counts of several batches add up.
    """
    valid = np.arange(codes.shape[2])[None] < frames[:, None]
    rows = np.broadcast_to(domain[:, None], valid.shape)[valid].astype(np.int64)
    counts = []
    for book, size in enumerate(sizes):
        cells = rows * size + codes[:, book][valid]
        counts.append(np.bincount(cells, minlength=num_domains * size).reshape(num_domains, size))
    return counts


def usage(counts: Sequence[np.ndarray], domains: Sequence[str]) -> list[Usage]:
    """Use of every codebook over all domains, then in each that occurs.

    Args:
      counts: as `count_codes` returns, the semantic codebook first.
      domains: D names.
    """
    names = ["semantic", *(f"residual {i}" for i in range(1, len(counts)))]
    tables = [(ALL, [count.sum(axis=0) for count in counts])]
    tables += [(name, [count[i] for count in counts]) for i, name in enumerate(domains)]
    return [
        Usage(domain, name, len(row), int(row.sum()), int(np.count_nonzero(row)), entropy(row))
        for domain, rows in tables
        for name, row in zip(names, rows, strict=True)
        if row.any()
    ]


def entropy(counts: np.ndarray) -> float:
    """Entropy of counts (K,), not all zero, in bits."""
    p = counts[counts > 0] / counts.sum()
    return float(abs(np.sum(p * np.log2(p))))  # abs: no -0.0 for a single code
