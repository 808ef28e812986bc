import importlib
import math
from typing import Any

import numpy as np
import pytest

from gac_jax.errors import UserError
from gac_jax.metrics.reading import (
    LabelHits,
    Reading,
    information,
    label_hits,
    partners,
    plain,
    transcript_errors,
)


def reading(truth: str = "", answer: str = "", **changes: Any) -> Reading:
    fields = {"path": "a.wav", "domain": "speech", "lang": "en", "task": "transcribe", "rate": 0}
    numbers = {"tokens": 1, "right": 1.0, "wrong": 1.0}
    return Reading(**{**fields, **numbers, "truth": truth, "answer": answer, **changes})


def test_partners_are_another_of_the_group_each_once() -> None:
    groups = ["b", "a", "b", "b", "a", "alone", "b", "b"]
    found = partners(groups)
    assert sorted(found) == list(range(len(groups)))
    for place, other in enumerate(found):
        assert groups[other] == groups[place]
        assert (other == place) == (groups[place] == "alone")
    assert found == partners(groups)
    assert len({tuple(partners(groups, seed)) for seed in range(9)}) > 1


def test_information_by_hand() -> None:
    found = information(
        [
            reading(tokens=3, right=6.0, wrong=9.0),
            reading(tokens=1, right=2.0, wrong=7.0),
        ]
    )
    assert (found.clips, found.tokens) == (2, 4)
    assert (found.right, found.wrong, found.nats) == (2.0, 4.0, 4.0)
    assert (found.low, found.high) == (3.0, 5.0)  # resampled means of 3 and 5 are 3, 4 and 5


def test_a_text_without_another_clip_is_not_compared() -> None:
    alone = reading(tokens=2, right=5.0, wrong=math.nan)
    found = information([reading(tokens=3, right=6.0, wrong=9.0), alone])
    assert (found.clips, found.tokens, found.right) == (2, 5, 11 / 5)
    assert (found.wrong, found.nats) == (3.0, 3.0)
    only = information([alone])
    assert only.right == 2.5 and math.isnan(only.wrong) and math.isnan(only.nats)


def test_error_rates_by_hand() -> None:
    found = transcript_errors(
        [
            reading("one two three", "one too three"),  # 1 of 3 words, 1 of 13 characters
            reading("go", "go on"),  # 1 word and 3 characters too many, for 1 and 2
        ]
    )
    assert found and (found.clips, found.distinct) == (2, 2)
    assert found.cer == pytest.approx(4 / 15) and found.wer == pytest.approx(2 / 4)
    assert found.mean_cer == pytest.approx((1 / 13 + 3 / 2) / 2)
    assert found.mean_wer == pytest.approx((1 / 3 + 1) / 2)


@pytest.mark.parametrize(
    ("truth", "answer", "cer"),
    [
        ("Don't stop!", "don\N{RIGHT SINGLE QUOTATION MARK}t  stop", 0.0),
        ("你好。", "你", 0.5),
        ("cab", "", 1.0),
    ],
)
def test_only_words_count_for_transcripts(truth: str, answer: str, cer: float) -> None:
    found = transcript_errors([reading(truth, answer)])
    assert found and found.cer == found.mean_cer == pytest.approx(cer)


def test_transcripts_without_a_word_are_left_out() -> None:
    assert transcript_errors([reading("...", "a")]) is None and label_hits([]) is None
    found = transcript_errors([reading("?", "a"), reading("b", "b")])
    assert found and (found.clips, found.cer) == (1, 0.0)


def test_labels_by_hand() -> None:
    hits = label_hits(
        [
            reading("Dog bark", "dog bark."),
            reading("dog, dog", "a dog barks"),  # the second dog is not there
            reading("slow piano music", "dog bark"),
        ]
    )
    assert hits == LabelHits(clips=3, exact=1 / 3, words=3 / 7, distinct=2)


def test_plain_text() -> None:
    assert plain(" The  rain \N{EM DASH} it's WET;\n100 % ") == "the rain it's wet 100"
    assert plain("Ünter ﬁne") == "ünter fine"


def test_jiwer_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=r'jiwer; pip install "gac_jax\[text\]"$'):
        transcript_errors([reading("a", "a")])


def test_partners_of_many_are_spread() -> None:
    """Not neighbours: clips of one speaker stand together in a manifest."""
    found = np.array(partners([0] * 1000))
    assert np.mean(np.abs(found - np.arange(1000)) < 10) < 0.1
