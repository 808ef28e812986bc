import json
import math
from typing import Any

import pytest

from gac_jax.metrics.codebooks import Usage
from gac_jax.metrics.findings import Findings, table
from gac_jax.metrics.reading import Reading

FACTS = {"config": "tiny", "step": 1200, "split": "held_out", "clips": {"speech": 2, "sound": 1}}
USAGE = [Usage("all", "semantic", 16_384, 2_000, 512, 9.0)]


def reading(path: str, rate: int, **changes: Any) -> Reading:
    fields = {"path": path, "domain": "speech", "lang": "en", "task": "transcribe", "rate": rate}
    rest = {"truth": "a b", "answer": "a c", "tokens": 2, "right": 2.0, "wrong": 3.0}
    return Reading(**{**fields, **rest, **changes})


def found(note: str = "") -> Findings:
    """Two transcripts and a label that has no other to compare with, at two rates."""
    label = {"domain": "sound", "lang": "", "task": "describe", "wrong": math.nan}
    readings = [
        given
        for rate in (0, 8)
        for given in (
            reading("a.wav", rate),
            reading("b.wav", rate, wrong=5.0 + rate),
            reading("c.wav", rate, truth="door", answer="door", **label),
        )
    ]
    return Findings(FACTS, USAGE, [] if note else readings, note)


def test_texts_by_rate_domain_and_task() -> None:
    rows = [(rate, domain, task, i.clips, i.nats) for rate, domain, task, i in found().texts]
    assert rows[:2] == [(0, "all", "all", 3, 2.0), (0, "speech", "transcribe", 2, 2.0)]
    assert rows[2][:4] == (0, "sound", "describe", 1) and math.isnan(rows[2][4])
    assert rows[4] == (8, "speech", "transcribe", 2, 6.0)


def test_transcripts_and_labels_are_kept_apart() -> None:
    findings = found()
    assert [(rate, lang, e.clips, e.wer) for rate, lang, e in findings.transcripts] == [
        (0, "all", 2, 0.5),
        (8, "all", 2, 0.5),
    ]
    assert [(domain, hits.exact) for _, domain, hits in findings.labels] == 2 * [
        ("all", 1.0),
        ("sound", 1.0),
    ]


def test_a_language_has_its_own_line_from_twenty_clips_on() -> None:
    readings = [
        reading(f"{i}.wav", 0, lang="de" if i < 20 else "fr" if i < 39 else "", answer="a b")
        for i in range(60)
    ]
    rows = Findings(FACTS, USAGE, readings).transcripts
    assert [(lang, e.clips) for _, lang, e in rows] == [("all", 60), ("de", 20)]


def test_the_report_has_every_table() -> None:
    lines = found().report().splitlines()
    assert lines[0] == (
        "# understanding at step 1,200: clips of the split held_out (2 speech, 1 sound)"
    )
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    assert ["all", "semantic", "2,000", "512", "16,384", "3.1 %", "512.0", "9.00"] in cells
    assert "Perplexity cannot exceed the frames" in found().report()
    rate = "k = 8 (0.975 kbps)"
    expected = ["speech", "transcribe", rate, "2", "4", "1.000", "4.000", "6.00", "1.00 to 11.00"]
    assert expected in cells
    assert ["sound", "describe", rate, "1", "2", "1.000", "-", "-", "-"] in cells
    assert ["all", rate, "2", "33.3 %", "50.0 %", "33.3 %", "50.0 %", "1"] in cells
    assert ["sound", rate, "1", "100.0 %", "100.0 %", "1"] in cells


def test_the_report_says_what_is_not_as_in_training() -> None:
    told = ["config.a is 1, was 2", "config.b is 3, was 4"]
    facts = {**FACTS, "not_as_in_training": told}
    lines = Findings(facts, USAGE, []).report().splitlines()
    assert lines[2] == "Not as in training: config.a is 1, was 2; config.b is 3, was 4."
    assert "Not as" not in found().report()
    assert json.loads(Findings(facts, USAGE, []).json())["not_as_in_training"] == told


def test_without_readings_the_report_says_why() -> None:
    report = found("No texts, because.").report()
    assert "No texts, because." in report and "Texts" not in report.replace("No texts", "")
    record = json.loads(found("No texts, because.").json())
    assert record["note"] == "No texts, because." and record["texts"] == []


def test_json_has_all_numbers_and_null_for_what_is_not_known() -> None:
    record = json.loads(found().json())
    assert record["step"] == 1200 and record["clips"] == {"speech": 2, "sound": 1}
    assert record["codebooks"][0]["perplexity"] == 512.0
    assert record["codebooks"][0]["share"] == 512 / 16_384
    assert [row["nats"] for row in record["texts"][:3]] == [2.0, 2.0, None]
    assert record["transcripts"][1]["wer"] == 0.5 and record["labels"][0]["words"] == 1.0


def test_one_line_for_each_text_with_its_answer_at_each_rate() -> None:
    lines = [json.loads(line) for line in found().answers().decode().splitlines()]
    assert [line["path"] for line in lines] == ["a.wav", "b.wav", "c.wav"]
    assert lines[1] == {
        "path": "b.wav",
        "domain": "speech",
        "lang": "en",
        "task": "transcribe",
        "truth": "a b",
        "answers": {"0": "a c", "8": "a c"},
        "tokens": 2,
        "right": {"0": 2.0, "8": 2.0},
        "wrong": {"0": 5.0, "8": 13.0},
    }
    assert lines[2]["wrong"] == {"0": None, "8": None}


@pytest.mark.parametrize("rows", [[], [("a", "1")], [("long name", "1,000")]])
def test_tables_are_aligned(rows: list[tuple[str, str]]) -> None:
    lines = table(("name", "n"), rows, words=1).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 2 + len(rows)
    assert lines[1].replace("-", "") == "|  | : |"
