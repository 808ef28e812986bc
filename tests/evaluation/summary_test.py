import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gac_jax.errors import UserError
from gac_jax.evaluation.folder import Folder, Ledger, write_rows
from gac_jax.evaluation.grid import measure, transmit
from gac_jax.evaluation.summary import (
    Contestant,
    Estimate,
    check_clips,
    compare_sets,
    contestants,
    summarise,
)
from gac_jax.metrics.bootstrap import interval
from gac_jax.metrics.metric import Column
from tests.evaluation import fakes
from tests.evaluation.fakes import Amplifier

PLAIN, WEIGHTED = Column("x", "X", True), Column("x_corpus", "X", True, weight="words")


def row(clip: str, seconds: float, size: int, **values: float) -> dict[str, Any]:
    times = {"encode_seconds": 0.5, "decode_seconds": 1.5, "parameters": {"decoder": 3}}
    domain, measured = clip.split("-")[0], {"values": values, "measured": [], "errors": {}}
    return (
        dict(system="a", clip=clip, domain=domain, seconds=seconds, bytes=size) | times | measured
    )


def contestant(*rows: dict[str, Any], **of_sets: dict[str, float]) -> Contestant:
    return Contestant("a", "a", Folder(Path()), rows, of_sets)


def test_a_line_by_hand() -> None:
    rows = (
        row("speech-0", 2.0, 1_000, x=1.0, x_corpus=1.0, words=3),
        row("speech-1", 6.0, 1_000, x=2.0, x_corpus=2.0, words=1),
        row("speech-2", 2.0, 500, x=4.5, x_corpus=4.5, words=1),
        {"system": "a", "clip": "speech-3", "domain": "speech", "seconds": 9.0, "error": "no"},
    )
    (line,) = summarise([contestant(*rows)], [PLAIN, WEIGHTED, Column("y", "Y", None)])
    assert (line.domain, line.system, line.clips, line.failed) == ("speech", "a", 3, 1)
    assert line.kbps == pytest.approx(8 * 2_500 / 10 / 1_000)
    assert (line.encode_rtf, line.decode_rtf) == (0.15, pytest.approx(0.45))
    assert line.parameters == {"decoder": 3}
    values, words = np.array([1.0, 2.0, 4.5]), np.array([3, 1, 1])
    assert line.value(PLAIN) == Estimate(2.5, *interval(values), 3)
    weighted = Estimate(1.9, *interval(values, weights=words), 3)  # (3 * 1 + 1 * 2 + 1 * 4.5) / 5
    assert line.value(WEIGHTED) == weighted
    assert set(line.values) == {"x", "x_corpus"}
    assert math.isnan(line.value(Column("y", "Y", None)).mean)


def test_clips_keep_their_weights_in_the_interval() -> None:
    values, words = np.arange(12.0), 1 + np.arange(12) % 5
    pairs = zip(values, words, strict=True)
    rows = [row("speech-0", 1.0, 1, x_corpus=value, words=count) for value, count in pairs]
    (line,) = summarise([contestant(*rows)], [WEIGHTED])
    estimate = line.value(WEIGHTED)
    assert (estimate.low, estimate.high) == interval(values, weights=words) != interval(values)


def test_numbers_of_sets_have_no_interval() -> None:
    (line,) = summarise([contestant(row("music-0", 1.0, 1), music={"fd": 2.5})], [])
    assert line.values["fd"].mean == 2.5 and math.isnan(line.values["fd"].low)


def test_domains_come_in_order_and_systems_in_theirs() -> None:
    first, second = contestant(row("music-0", 1.0, 1), row("speech-0", 1.0, 1)), contestant()
    lines = summarise([second, first], [])
    assert [(line.domain, line.system) for line in lines] == [("speech", "a"), ("music", "a")]


def test_a_system_that_always_failed_has_no_numbers() -> None:
    failed = {"system": "a", "clip": "b", "domain": "other", "seconds": 1.0, "error": "no"}
    (line,) = summarise([contestant(failed)], [PLAIN])
    assert (line.clips, line.failed, line.parameters, line.values) == (0, 1, {}, {})
    assert math.isnan(line.kbps) and math.isnan(line.decode_rtf)


def evaluated(path: Path, *systems: Amplifier, sound: int = 3) -> tuple[Folder, list]:
    folder = Folder(path)
    references = fakes.references(folder, speech=1, sound=sound)
    with Ledger(folder.rows) as ledger:
        transmit(systems, references, folder, ledger, 1)
        measure(fakes.suite(), references, folder, ledger, 1)
    write_rows(folder.sets, compare_sets(fakes.suite(), references, folder, ledger))
    return folder, references


def test_sets_are_compared_by_domain_over_clips_that_went_through(tmp_path: Path) -> None:
    folder, references = evaluated(
        tmp_path, Amplifier("same"), Amplifier("half", 0.5, refused=[3_840])
    )
    rows = compare_sets(fakes.suite(), references, folder, Ledger(folder.rows))
    assert [(row["system"], row["domain"]) for row in rows] == [
        ("same", "sound"),
        ("half", "sound"),
    ]
    assert rows[0]["values"] == {"moment": 0.0}  # what is infinite is left out
    powers = [
        np.load(folder.description(r.id, "moment"))["power"]
        for r in references
        if r.clip.domain == "sound" and r.seconds < 0.12
    ]
    assert rows[1]["values"]["moment"] == pytest.approx(0.75 * np.mean(powers), rel=1e-3)


def test_runs_are_joined(tmp_path: Path) -> None:
    one, references = evaluated(tmp_path / "one", Amplifier("b"), Amplifier("a"))
    two, _ = evaluated(tmp_path / "two", Amplifier("a", 0.5), Amplifier("c", 0.1))
    found = contestants(one, [two], references, ["a"])
    names = [(s.title, s.name, s.folder) for s in found]
    assert names == [("a", "a", one), ("b", "b", one), ("two/a", "a", two), ("c", "c", two)]
    assert all(len(system.rows) == 4 for system in found)
    assert found[0].of_sets["sound"]["moment"] == 0.0 < found[2].of_sets["sound"]["moment"]
    lines = {(line.domain, line.system): line for line in summarise(found, [])}
    assert lines["sound", "c"].values["moment"].mean > 0


def test_runs_on_other_clips_are_refused(tmp_path: Path) -> None:
    one, references = evaluated(tmp_path / "one", Amplifier("a"))
    two, _ = evaluated(tmp_path / "two", Amplifier("a"), sound=4)
    for other in (two, Folder(tmp_path / "none")):
        with pytest.raises(UserError, match=r"clips.jsonl: missing, or not the clips of this run"):
            check_clips([other], references)
    check_clips([one], references)
