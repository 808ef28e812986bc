import csv
import io

from gac_jax.evaluation.summary import Estimate, Line
from gac_jax.evaluation.tables import cell, columns_of, markdown, notes, present, to_csv
from tests.evaluation import fakes

SUITE = fakes.suite()
TITLES = ("difference", "↓"), ("weighted <&>", "↓"), ("Ear", "↑")


def line(domain: str, system: str, failed: int = 0, **values: Estimate) -> Line:
    parameters = {"encoder": 1_500_000, "decoder": 20_000_000} if system == "gac" else {}
    return Line(domain, system, 2, failed, 0.275, 0.1234, 12.0, parameters, values)


LINES = [
    line("speech", "gac", difference=Estimate(0.5, 0.4, 0.8, 2)),
    line("speech", "opus", 1, difference=Estimate(0.25), weighted=Estimate(1.0, 1.0, 1.0)),
    line("sound", "gac", moment=Estimate(0.12345)),
]


def test_a_number_has_half_of_its_interval_and_its_digits() -> None:
    assert cell(Estimate(0.5, 0.4, 0.8, 10), 2, 10) == "0.50 ± 0.20"
    assert cell(Estimate(0.5, 0.4, 0.8, 9), 2, 10) == "0.50 ± 0.20 (9)"
    assert cell(Estimate(0.5), 3, 10) == "0.500"
    assert cell(Estimate(), 3, 10) == "-"


def test_columns_without_a_number_are_gone_but_those_of_missing_metrics() -> None:
    names = [column.name for column in columns_of(SUITE, LINES, "speech")]
    assert names == ["difference", "weighted", "ear"]  # level has no number, ear2 goes with ear
    assert [column.name for column in columns_of(SUITE, LINES, "sound")] == ["moment"]
    assert present(LINES) == ["speech", "sound"]


def test_markdown_has_a_table_for_each_domain() -> None:
    text = markdown(SUITE, LINES)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    heads = ["system", "clips", "kbps", "parameters", "encode RTF", "decode RTF"]
    assert rows[0] == [*heads, *(f"{x}\N{NO-BREAK SPACE}{y}" for x, y in TITLES)]
    assert rows[2] == ["gac", "2", "0.275", "21.5 M", "0.123", "12.000", "0.500 ± 0.200", "-", "-"]
    assert rows[3][1:4] == ["2 (1 failed)", "0.275", "-"]
    assert rows[3][6:] == ["0.250", "1.000 ± 0.000", "-"]
    assert rows[4] == [*heads, "moment\N{NO-BREAK SPACE}↓"] and rows[6][-1] == "0.1235"
    assert text.index("## speech") < text.index("## sound") < text.index("- ±")


def test_notes_say_what_is_missing_and_what_failed() -> None:
    told = notes(SUITE, LINES)
    assert "ear was not computed: needs an ear <of wax>." in told
    assert "opus failed at 1 of 3 clips of speech; metrics.jsonl has the errors." in told


def test_csv_has_the_ends_of_intervals() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(SUITE, LINES).decode())))
    assert [(row["domain"], row["system"]) for row in rows] == [
        ("speech", "gac"), ("speech", "opus"), ("sound", "gac"),
    ]  # fmt: skip
    assert rows[0] == {
        "domain": "speech", "system": "gac", "clips": "2", "failed": "0", "kbps": "0.275",
        "parameters": "21500000", "encode_rtf": "0.1234", "decode_rtf": "12",
        "difference": "0.5", "difference_low": "0.4", "difference_high": "0.8",
        "difference_clips": "2",
    } | {
        f"{name}{end}": "" for name in ("weighted", "ear", "moment")
        for end in ("", "_low", "_high", "_clips")
    }  # fmt: skip
    assert (rows[1]["parameters"], rows[2]["moment"]) == ("", "0.12345")
