"""What a language model makes of codes: information in nats, and errors of its answers.

Error rates are the word and character error rates (WER, CER) of speech recognition, counted by
jiwer. Both texts are compared in lower case and without punctuation.
"""

from __future__ import annotations

import dataclasses
import importlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from gac_jax.errors import UserError
from gac_jax.metrics.bootstrap import interval


@dataclasses.dataclass(frozen=True)
class Reading:
    """One text of one clip, read at one rate.

    Attributes:
      path: names the clip.
      domain: of the clip.
      lang: language of the clip; "" is unknown.
      task: what was asked.
      rate: residual codebooks in use.
      truth: the text.
      answer: what the language model says instead, by greedy choice.
      tokens: of the text and its end, as many as were scored.
      right: -log P of them given the clip's codes, in nats.
      wrong: likewise given the codes of another clip; NaN where there is no other.
    """

    path: str
    domain: str
    lang: str
    task: str
    rate: int
    truth: str
    answer: str
    tokens: int
    right: float
    wrong: float


@dataclasses.dataclass(frozen=True)
class Information:
    """What codes tell of texts.

    Attributes:
      clips: texts; a clip with a transcript and a label counts as two.
      tokens: of all texts.
      right: nats per token given the right codes.
      wrong: nats per token given those of another clip.
      nats: wrong less right, nats per clip: an estimate of a lower bound of I(Z;Y).
      low: lower end of its 95 % bootstrap interval over clips.
      high: upper end.
    """

    clips: int
    tokens: int
    right: float
    wrong: float
    nats: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class TranscriptErrors:
    """Errors of transcripts.

    Attributes:
      clips: transcripts with a letter in them.
      cer: character error rate, all errors over all characters.
      wer: word error rate, likewise.
      mean_cer: mean of the clips' own rates.
      mean_wer: likewise.
      distinct: answers that differ from each other.
    """

    clips: int
    cer: float
    wer: float
    mean_cer: float
    mean_wer: float
    distinct: int


@dataclasses.dataclass(frozen=True)
class LabelHits:
    """How well labels are named.

    Attributes:
      clips: labels with a letter in them.
      exact: share of answers that are the label.
      words: share of the labels' words that are in the answers.
      distinct: answers that differ from each other.
    """

    clips: int
    exact: float
    words: float
    distinct: int


def partners(groups: Sequence[Hashable], seed: int = 0) -> list[int]:
    """For each item another of the same group, each taken once; the same at every call.

    Args:
      groups: the group of each item.
      seed: of the order.

    Returns:
      Places in `groups`; an item that is alone in its group gets its own.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        members[group].append(place)
    rng, result = np.random.default_rng(seed), list(range(len(groups)))
    for places in members.values():
        order = rng.permutation(places).tolist()
        for place, other in zip(order, order[1:] + order[:1], strict=True):
            result[place] = other
    return result


def information(readings: Sequence[Reading]) -> Information:
    """Compares right with wrong codes over readings, of which there is one at least.

    The difference bounds I(Z;Y) from below as far as the language model is no worse at guessing
    with wrong codes than it would be with none: a reader misled by them makes it too large.
    Readings without another clip count in `right` only.
    """
    compared = [reading for reading in readings if not np.isnan(reading.wrong)]
    gains = np.array([reading.wrong - reading.right for reading in compared])
    tokens = sum(reading.tokens for reading in readings)
    low, high = interval(gains)
    nan = float("nan")
    return Information(
        clips=len(readings),
        tokens=tokens,
        right=sum(r.right for r in readings) / tokens,
        wrong=sum(r.wrong for r in compared) / sum(r.tokens for r in compared) if compared else nan,
        nats=float(np.mean(gains)) if compared else nan,
        low=low,
        high=high,
    )


def transcript_errors(readings: Sequence[Reading]) -> TranscriptErrors | None:
    """Error rates of transcripts; None if none has a letter or figure.

    Raises:
      UserError: jiwer is not installed.
    """
    jiwer = error_counter()
    pairs = _pairs(readings)
    if not pairs:
        return None
    truths, answers = [truth for truth, _ in pairs], [answer for _, answer in pairs]
    return TranscriptErrors(
        clips=len(pairs),
        cer=float(jiwer.cer(truths, answers)),
        wer=float(jiwer.wer(truths, answers)),
        mean_cer=float(np.mean([jiwer.cer(*pair) for pair in pairs])),
        mean_wer=float(np.mean([jiwer.wer(*pair) for pair in pairs])),
        distinct=len(set(answers)),
    )


def label_hits(readings: Sequence[Reading]) -> LabelHits | None:
    """Labels and their words that are found; None if none has a letter or figure."""
    pairs = _pairs(readings)
    if not pairs:
        return None
    wanted = [Counter(truth.split()) for truth, _ in pairs]
    found = [w & Counter(answer.split()) for w, (_, answer) in zip(wanted, pairs, strict=True)]
    return LabelHits(
        clips=len(pairs),
        exact=sum(truth == answer for truth, answer in pairs) / len(pairs),
        words=sum(w.total() for w in found) / sum(w.total() for w in wanted),
        distinct=len({answer for _, answer in pairs}),
    )


def plain(text: str) -> str:
    """Lower case, words one space apart, no punctuation but apostrophes."""
    text = (
        unicodedata.normalize("NFKC", text).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    )
    kept = (c if c == "'" or unicodedata.category(c)[0] not in "PSC" else " " for c in text)
    return " ".join("".join(kept).split())


def error_counter() -> Any:
    """The package jiwer.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module("jiwer")
    except ImportError as error:
        raise UserError(
            'counting errors of transcripts needs the package jiwer; pip install "gac_jax[text]"'
        ) from error


def _pairs(readings: Sequence[Reading]) -> list[tuple[str, str]]:
    """Plain truth and answer; without those whose truth is punctuation alone."""
    pairs = ((plain(reading.truth), plain(reading.answer)) for reading in readings)
    return [(truth, answer) for truth, answer in pairs if truth.strip("' ")]
