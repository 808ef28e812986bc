"""How far a mean could be off for want of clips: the percentile bootstrap (Efron, 1979)."""

from __future__ import annotations

import numpy as np

RESAMPLES = 2_000
LEVEL = 0.95


def interval(
    values: np.ndarray, seed: int = 0, weights: np.ndarray | None = None
) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean; the same at every call.

    Args:
      values: (n,), one of each clip.
      seed: of the resampling.
      weights: (n,), of the clips in a weighted mean; clips keep theirs when they are drawn.

    Returns:
      Low and high end; NaN for fewer than two values, which say nothing of their spread.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(values), size=len(values)) for _ in range(RESAMPLES))
    if weights is None:
        means = [float(np.mean(values[draw])) for draw in draws]
    else:
        means = [float(np.average(values[draw], weights=weights[draw])) for draw in draws]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
