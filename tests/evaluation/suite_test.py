import sys

import pytest

from gac_jax.errors import UserError
from gac_jax.evaluation import suite
from gac_jax.evaluation.suite import FILES, METRICS, Entry
from gac_jax.metrics.metric import SPEECH, Column, Unavailable
from gac_jax.metrics.signal import Signal

NO_FILES = dict.fromkeys(FILES, "")


class Judge:
    """A metric of a file."""

    domains = SPEECH

    def __init__(self, name: str) -> None:
        self.columns = (Column(name, name.upper(), True),)

    def measure(self, excerpt: object) -> dict[str, float]:
        return {}


def judge(name: str, file: str = "", reason: str = "") -> Entry:
    def load(*path: str) -> Judge:
        if reason:
            raise Unavailable(reason)
        return Judge(name + "".join(path))

    return Entry(load, (Column(name, name, True), Column(f"{name}2", name, True)), SPEECH, file)


def test_the_metrics_that_need_nothing_are_there() -> None:
    made = suite.load(["signal"], NO_FILES)
    assert isinstance(made.of_clips["signal"], Signal)
    assert made.missing == {} and made.of_sets == {}
    assert [column.name for column in made.shown("music")] == [c.name for c in Signal.columns]


def test_without_files_and_packages_each_metric_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("faster_whisper", "jiwer", "speechmos", "pystoi", "pesq", "resemblyzer"):
        monkeypatch.setitem(sys.modules, package, None)
    names = [name for name in METRICS if name != "whisper"]  # it loads a model
    made = suite.load(names, NO_FILES)
    assert set(made.missing) == set(names) - {"signal"}
    assert all(reason.startswith("needs") for reason in made.missing.values())
    for file in FILES:
        assert f"--{file}" in " ".join(made.missing.values()) or file == "recogniser"
    assert {column.name for column in made.shown("speech")} >= {"wer", "sim", "stoi", "pesq"}
    assert "stoi" not in {column.name for column in made.shown("sound")}


def test_files_reach_their_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"a": judge("a", "speaker"), "b": judge("b"), "c": judge("c", "passt", "needs wax")}
    monkeypatch.setattr(suite, "METRICS", table)
    made = suite.load(["c", "a"], {"speaker": "/x", "passt": "/y"})
    assert made.missing == {"c": "needs wax"} and list(made.of_clips) == ["a"]
    assert [column.name for column in made.shown()] == ["a/x", "c", "c2"]  # in the table's order
    assert made.files == {"a": "/x"}
    assert list(suite.load(["all"], {"speaker": "", "passt": ""}).of_clips) == ["a", "b"]


def test_two_opinions_make_a_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"signal": judge("s"), "dnsmos": judge("dnsmos_p808"), "nisqa": judge("nisqa", "nisqa")}
    monkeypatch.setattr(suite, "METRICS", both)
    made = suite.load(["all"], {"nisqa": ""})
    assert list(made.of_clips) == ["mos", "signal"]
    assert [c.name for c in made.of_clips["mos"].columns] == ["dnsmos_p808", "nisqa", "mos"]
    alone = suite.load(["dnsmos"], {"nisqa": ""})
    assert list(alone.of_clips) == ["dnsmos"]


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UserError, match="--metrics: 'wet' is none of all, wer, sim"):
        suite.load(["signal", "wet"], NO_FILES)
