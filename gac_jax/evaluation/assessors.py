"""What assessors of a listening test said: post-screening, means and their confidence.

Reads the mushra.csv of webMUSHRA for a test that `gac_jax.evaluation.mushra` made.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from gac_jax.errors import UserError
from gac_jax.metrics.codebooks import ALL
from gac_jax.metrics.findings import table

REFERENCE, MID_ANCHOR = "reference", "anchor70"  # as webMUSHRA names them
TRAINING = "training"  # id of the page whose ratings do not count
TRANSPARENT = 90  # a score below it says "I hear a difference"
MOST_WRONG = 0.15  # share of items that an assessor may get wrong (BS.1534-3, 4.1.2)
CONFIDENCE = 0.95
NOTE = """Mean score, 0 to 100, with its 95 % interval by Student's t over all ratings of a cell, as
in BS.1534-3; ratings of one assessor, or of one item, resemble each other, so the true interval
is wider. Left out is whoever rates the hidden reference below 90, or the 7 kHz anchor above 90, on
more than 15 % of the items (post-screening of BS.1534-3)."""

_RATING = ("trial_id", "rating_stimulus", "rating_score")
_NOT_THE_ASSESSOR = {*_RATING, "session_test_id", "rating_time", "rating_comment"}


@dataclasses.dataclass(frozen=True)
class Rating:
    """One score.

    Attributes:
      assessor: who gave it.
      domain: of the clip.
      item: id of the clip.
      stimulus: a system, `REFERENCE` or an anchor.
      score: 0 .. 100.
    """

    assessor: str
    domain: str
    item: str
    stimulus: str
    score: float


@dataclasses.dataclass(frozen=True)
class Score:
    """One cell of the table.

    Attributes:
      stimulus: as in ratings.
      domain: as in ratings, or `ALL`.
      mean: of the ratings.
      margin: half of the 95 % interval; NaN for a single rating.
      ratings: how many.
      assessors: how many gave them.
    """

    stimulus: str
    domain: str
    mean: float
    margin: float
    ratings: int
    assessors: int


def read(path: Path) -> list[Rating]:
    """Reads ratings, those of the training page left out.

    Raises:
      UserError: no such file, or not what webMUSHRA writes for a test of ours.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _RATING if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path}: has no column {missing[0]}; give webMUSHRA's mushra.csv")
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read; give webMUSHRA's mushra.csv") from error
    ratings = [_rating(f"{path} line {n}", row) for n, row in rows if row["trial_id"] != TRAINING]
    if not ratings:
        raise UserError(f"{path}: holds no ratings")
    return ratings


def post_screen(ratings: Sequence[Rating]) -> dict[str, str]:
    """Who is to be left out by BS.1534-3, 4.1.2, and why.

    Args:
      ratings: of all assessors.

    Returns:
      Reasons by assessor.
    """
    heard = defaultdict(list)
    for rating in ratings:
        heard[rating.assessor, rating.stimulus].append(rating.score)
    reasons = {}
    for assessor in sorted({rating.assessor for rating in ratings}):
        low = _share([score < TRANSPARENT for score in heard[assessor, REFERENCE]])
        high = _share([score > TRANSPARENT for score in heard[assessor, MID_ANCHOR]])
        if low > MOST_WRONG:
            reasons[assessor] = f"hidden reference below {TRANSPARENT} on {low:.0%} of items"
        elif high > MOST_WRONG:
            reasons[assessor] = f"7 kHz anchor above {TRANSPARENT} on {high:.0%} of items"
    return reasons


def scores(ratings: Sequence[Rating]) -> list[Score]:
    """Every stimulus in every domain and in all, the best stimulus of all first."""
    cells = defaultdict(list)
    for rating in ratings:
        for domain in (ALL, rating.domain):
            cells[domain, rating.stimulus].append(rating)
    found = [_score(domain, stimulus, some) for (domain, stimulus), some in cells.items()]
    overall = {score.stimulus: score.mean for score in found if score.domain == ALL}
    return sorted(found, key=lambda s: (-overall[s.stimulus], s.stimulus, s.domain))


def report(found: Sequence[Score], left_out: dict[str, str], assessors: int) -> str:
    """Table 2 of the GAC report as Markdown.

    Args:
      found: by `scores`.
      left_out: by `post_screen`.
      assessors: how many there were before.
    """
    domains, cells = _domains(found), {(s.stimulus, s.domain): s for s in found}
    rows = [
        (stimulus, *(_cell(cells.get((stimulus, domain))) for domain in domains))
        for stimulus in dict.fromkeys(score.stimulus for score in found)
    ]
    lines = [f"- {assessor}: {reason}" for assessor, reason in left_out.items()]
    kept = f"{assessors - len(left_out)} of {assessors} assessors"
    parts = ["# Listening test", table(("system", *domains), rows, words=1), NOTE]
    parts += [f"{kept} are in the table{'; left out:' if lines else '.'}", "\n".join(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_csv(found: Sequence[Score]) -> bytes:
    """The same scores, a line each."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(Score)])
    writer.writerows(dataclasses.astuple(score) for score in found)
    return buffer.getvalue().encode()


def draw(found: Sequence[Score]) -> Figure:
    """A panel for each domain, with means and intervals."""
    domains = _domains(found)
    figure = Figure(figsize=(3.2 * len(domains), 4.5), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(domains), sharey=True, squeeze=False)[0]
    for panel, domain in zip(panels, domains, strict=True):
        cells = [score for score in found if score.domain == domain]
        places = range(len(cells))
        panel.errorbar(
            places, [s.mean for s in cells], [s.margin for s in cells], fmt="o", capsize=4
        )
        panel.set_xticks(places, [s.stimulus for s in cells], rotation=60, ha="right")
        panel.set(title=domain, ylim=(0, 100))
        panel.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("MUSHRA score, 95 % interval")
    return figure


def picture(found: Sequence[Score], kind: str) -> bytes:
    """What `draw` draws, as the contents of a file: "png" or "svg"."""
    buffer = io.BytesIO()
    draw(found).savefig(buffer, format=kind)
    return buffer.getvalue()


def _rating(place: str, row: dict[str, str]) -> Rating:
    domain, colon, item = row["trial_id"].partition(":")
    if not colon:
        raise UserError(f"{place}: page {domain!r} is none that gac_jax.listening exported")
    try:
        score = float(row["rating_score"])
    except (TypeError, ValueError):
        score = math.nan
    if not 0 <= score <= 100:
        raise UserError(f"{place}: score {row['rating_score']!r} is not within 0 .. 100")
    who = [value for name, value in row.items() if name and name not in _NOT_THE_ASSESSOR]
    return Rating(" ".join(filter(None, who)), domain, item, row["rating_stimulus"], score)


def _share(wrong: Sequence[bool]) -> float:
    return sum(wrong) / len(wrong) if wrong else 0.0


def _score(domain: str, stimulus: str, ratings: Sequence[Rating]) -> Score:
    values, count = [rating.score for rating in ratings], len(ratings)
    margin = math.nan
    if count > 1:
        quantile = student_t.ppf((1 + CONFIDENCE) / 2, count - 1)
        margin = float(quantile * np.std(values, ddof=1) / math.sqrt(count))
    assessors = len({rating.assessor for rating in ratings})
    return Score(stimulus, domain, float(np.mean(values)), margin, count, assessors)


def _domains(found: Sequence[Score]) -> list[str]:
    """In alphabetical order, all of them together last."""
    return sorted({score.domain for score in found}, key=lambda name: (name == ALL, name))


def _cell(score: Score | None) -> str:
    if score is None:
        return "-"
    return f"{score.mean:.1f} ± {'-' if math.isnan(score.margin) else f'{score.margin:.1f}'}"
