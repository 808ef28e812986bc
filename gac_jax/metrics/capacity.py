"""Bits that are sent against parameters that know: Eq. 1 to 3 of the report, on what was measured.

Eq. 3 reads H = R + eta N / D: of the H bit that a second of audio holds, R are sent and the rest
comes from a decoder with N parameters that learnt from D seconds of audio; eta is how many bits a
parameter holds. H itself is not known, so what is fitted is the trade: systems of equal quality
have equal H, hence to first order

    distance = a - b (R + eta N / D),

and eta / D is the exchange rate, in bit/s saved for each parameter.

R is counted in two ways: the bits of the files, and (Eq. 2) the cross-entropy of a predictor of
the codes, here the simple adaptive one of `Predictor`. A better predictor would give a smaller R.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from scipy.special import logsumexp

from gac_jax import model_folder
from gac_jax.metrics.findings import table

MIN_POINTS = 5  # three numbers are fitted, and each fit with one point left out is tested too
ASSUMPTIONS = """Assumptions: points of equal distance have the same H; the distance is a plane
over R and N / D in the range of the points; D is all audio that the decoder saw in training,
repeated audio counted each time; N is the decoder alone, so the encoder must be the same for all
points. The range of eta is that of fits with one point left out, and no confidence interval.
Nothing is claimed beyond the points."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One system, measured.

    Attributes:
      name: of the system.
      rate: R in bit/s, by the bytes of its files.
      predicted: R in bit/s, by the cross-entropy of its codes; NaN where that was not computed.
      parameters: N.
      seconds: D; NaN if not known.
      distance: how far decoded audio is from the original; lower is better.
    """

    name: str
    rate: float
    predicted: float
    parameters: int
    seconds: float
    distance: float


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What bits and parameters do to the distance.

    Attributes:
      eta: bits a parameter; NaN if there is a reason not to say.
      low: lowest eta with one point left out.
      high: highest.
      slope: b, distance a bit/s.
      explained: share of the distances' variance that the fit explains.
      reason: why there are no numbers; "" if there are.
    """

    eta: float = math.nan
    low: float = math.nan
    high: float = math.nan
    slope: float = math.nan
    explained: float = math.nan
    reason: str = ""


class Predictor:
    """What each code of a codebook costs, predicted from those before it.

    Three guesses are mixed by how well each did so far (Bayes): all codes alike; the codes counted
    so far (order 0); and those counted after the same code as the last one (order 1). Each order
    falls back on the one below as Witten and Bell (1991) do. The cost is what an arithmetic coder
    with these probabilities spends, within two bits, and never exceeds that of plain codes by more
    than log2(3) bits in all.
    """

    def __init__(self, size: int) -> None:
        """Starts without having seen any.

        Args:
          size: codes in the codebook.
        """
        self._size = size
        self._all = _Counts()
        self._after: dict[int, _Counts] = defaultdict(_Counts)
        self._costs = [0.0, 0.0, 0.0]  # bits that each guess would have spent by itself

    def cost(self, codes: np.ndarray) -> float:
        """Bits for a clip's codes (N,) in order, each learnt from once it is paid for."""
        before, last = self._spent(), -1  # the start of a clip is a context of its own
        for code in codes.tolist():
            plain = 1 / self._size
            order_0 = self._all.probability(code, plain)
            order_1 = self._after[last].probability(code, order_0)
            for i, guess in enumerate((plain, order_0, order_1)):
                self._costs[i] -= math.log2(guess)
            self._all.add(code)
            self._after[last].add(code)
            last = code
        return self._spent() - before

    def _spent(self) -> float:
        """Bits that the mixture has spent, but for a constant.

        The product of its probabilities is the mean of the guesses' own products.
        """
        return -float(logsumexp(-math.log(2) * np.array(self._costs))) / math.log(2)


def predicted_bits(
    seen: Iterable[np.ndarray], held_out: Iterable[np.ndarray], sizes: Sequence[int]
) -> np.ndarray:
    """Cross-entropy of codes by `Predictor`, once it has seen others.

    Args:
      seen: clips (K, N) to learn from first; none is fine.
      held_out: clips (K, N) whose codes are paid for. It learns from these too, each code once it
        is paid for, as a decoder can.
      sizes: codes of each of the K codebooks.

    Returns:
      (K,) bits a frame; NaN if no frame was held out.
    """
    predictors = [Predictor(size) for size in sizes]
    for codes in seen:
        _costs(predictors, codes)
    costs, frames = np.zeros(len(sizes)), 0
    for codes in held_out:
        costs += _costs(predictors, codes)
        frames += codes.shape[1]
    return costs / frames if frames else np.full(len(sizes), math.nan)


def fit(points: Sequence[Point]) -> Exchange:
    """Fits Eq. 3 by least squares, or says why it cannot."""
    reason = _objection(points)
    if reason:
        return Exchange(reason=reason)
    rate, size, explained = _slopes(points)
    rest = [_slopes([p for p in points if p is not out]) for out in points]
    if min(slope for slope, *_ in [(rate,), *rest]) <= 0:
        return Exchange(reason="a higher rate does not lower the distance")
    etas = [by_size / by_rate for by_rate, by_size, _ in rest]
    return Exchange(size / rate, min(etas), max(etas), rate, explained)


def model_size(folder: Path) -> tuple[int, float]:
    """Parameters of a model's decoder, N, and seconds of audio that it saw in training, D.

    Args:
      folder: a model folder.

    Returns:
      N, and D by the model's card; NaN if the card does not say.

    Raises:
      UserError: the folder is missing or damaged.
    """
    _, params = model_folder.load(folder)
    parameters = sum(x.size for x in jax.tree.leaves(params["decoder"]))
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    run = re.search(r"^- generation: ([\d,]+) steps of ([\d,]+) crops of ([\d.]+) s", text, re.M)
    numbers = [float(n.replace(",", "")) for n in run.groups()] if run else [math.nan]
    return parameters, math.prod(numbers)


def report(points: Sequence[Point]) -> str:
    """The points, what Eq. 3 makes of them, and the assumptions, as Markdown."""
    columns = ("system", "R, files / bit/s", "R, predicted / bit/s", "N / million", "D / hours")
    rows = [
        (p.name, _figure(p.rate, 1), _figure(p.predicted, 1), f"{p.parameters / 1e6:.2f}")
        + (_figure(p.seconds / 3600, 1), _figure(p.distance, 3))
        for p in points
    ]
    tables = [table((*columns, "distance"), rows, words=1)] if rows else []
    return "\n\n".join([*tables, _verdict(points), ASSUMPTIONS])


class _Counts:
    """How often each code occurred in a context."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = defaultdict(int)
        self._total = 0

    def probability(self, code: int, otherwise: float) -> float:
        """Witten and Bell: an unseen code is as likely as new ones have been."""
        if not self._total:
            return otherwise
        distinct = len(self._counts)
        return (self._counts.get(code, 0) + distinct * otherwise) / (self._total + distinct)

    def add(self, code: int) -> None:
        self._counts[code] += 1
        self._total += 1


def _costs(predictors: Sequence[Predictor], codes: np.ndarray) -> np.ndarray:
    return np.array([p.cost(row) for p, row in zip(predictors, codes, strict=True)])


def _objection(points: Sequence[Point]) -> str:
    """Why points cannot be fitted; "" if they can."""
    if len(points) < MIN_POINTS:
        return f"{len(points)} points, and at least {MIN_POINTS} are needed"
    unknown = [p.name for p in points if not np.isfinite(p.rate + p.seconds + p.distance)]
    if unknown:
        return f"a number of {unknown[0]} is not known"
    subsets = ([p for p in points if p is not out] for out in points)
    if any(np.linalg.matrix_rank(_design(some)) < 3 for some in subsets):
        return "rates and decoder sizes do not vary apart from each other in enough points"
    return ""


def _design(points: Sequence[Point]) -> np.ndarray:
    """Rows 1, R, N / D."""
    return np.array([[1.0, p.rate, p.parameters / p.seconds] for p in points])


def _slopes(points: Sequence[Point]) -> tuple[float, float, float]:
    """How fast the distance falls with R and with N / D, and the share of variance explained."""
    x, y = _design(points), np.array([p.distance for p in points])
    coefficients = np.linalg.lstsq(x, y, rcond=None)[0]
    missed, variance = np.sum(np.square(y - x @ coefficients)), np.sum(np.square(y - y.mean()))
    explained = float(1 - missed / variance) if variance else 0.0
    return -float(coefficients[1]), -float(coefficients[2]), explained


def _verdict(points: Sequence[Point]) -> str:
    found = fit(points)
    if found.reason:
        return f"Eta and the exchange rate were not computed: {found.reason}."
    trades = (
        f"{1e6 * found.eta / seconds:.3g} bit/s at D = {seconds / 3600:,.1f} h"
        for seconds in sorted({p.seconds for p in points})
    )
    return (
        f"Eta = {found.eta:.3g} bits a parameter ({found.low:.3g} to {found.high:.3g}): a million "
        f"parameters stand for {', '.join(trades)}. One bit/s more lowers the distance by "
        f"{found.slope:.3g}. The fit explains {100 * found.explained:.0f} % of the variance."
    )


def _figure(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"
