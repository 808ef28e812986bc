"""A whole run; and how systems whose order is known come out of it."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from gac_jax.data.sources import open_source
from gac_jax.errors import UserError
from gac_jax.evaluation import suite
from gac_jax.evaluation.clips import choose
from gac_jax.evaluation.folder import Folder
from gac_jax.evaluation.run import Evaluation, run
from gac_jax.evaluation.summary import Line
from gac_jax.evaluation.systems import System, open_systems
from tests.evaluation import fakes
from tests.evaluation.fakes import Amplifier


def evaluation(path: Path, *systems: System, shown: int = 1) -> Evaluation:
    source = fakes.source(path / "in", speech=3, sound=2)
    chosen = choose(source.clips, "all", 0.0, 2)
    made, folder = fakes.suite(), Folder(path / "out")
    return Evaluation(source, chosen, 5.0, systems, made, folder, [], 2, shown)


def files(folder: Folder) -> set[str]:
    return {path.name for path in folder.path.iterdir()}


def test_all_results_are_written(tmp_path: Path) -> None:
    asked = evaluation(tmp_path, Amplifier("a@1", 0.5), Amplifier("b@1", refused=[3_200]))
    lines = run(asked)
    assert [(line.domain, line.system, line.clips, line.failed) for line in lines] == [
        ("speech", "a@1", 2, 0), ("speech", "b@1", 1, 1),
        ("sound", "a@1", 2, 0), ("sound", "b@1", 1, 1),
    ]  # fmt: skip
    tables = {"table.md", "table.csv", "metrics.jsonl", "sets.jsonl"}
    about = {"clips", "clips.jsonl", "settings.json", "report.html", "figure1.png", "figure1.svg"}
    assert files(asked.folder) == tables | about
    report = (asked.folder.path / "report.html").read_text(encoding="utf-8")
    assert report.count("<audio") == sum(
        path.is_file()
        for clip in ("speech-000", "sound-000")
        for path in (asked.folder.wave(clip, name) for name in ("reference", "a@1", "b@1"))
    )
    settings = json.loads(asked.folder.settings.read_text())
    assert settings["clips"] == {"seconds": 5.0}
    assert settings["systems"] == {"a@1": {"gain": 0.5}, "b@1": {"gain": 1.0}}


def test_a_second_run_adds_systems_and_repeats_nothing(tmp_path: Path) -> None:
    first, second = Amplifier("a", 0.5), Amplifier("b")
    run(evaluation(tmp_path, first))
    again = evaluation(tmp_path, second)
    assert [line.system for line in run(again)] == ["b", "a"] * 2  # those asked for come first
    assert (first.sent, second.sent) == (4, 4)
    assert again.suite.of_clips["difference"].measured == 4
    last = evaluation(tmp_path, second)
    before = (last.folder.path / "table.csv").read_bytes()
    run(last)
    assert second.sent == 4 and last.suite.of_clips["difference"].measured == 0
    assert (last.folder.path / "table.csv").read_bytes() == before


@pytest.mark.parametrize("change", [{"seconds": 4.0}, {"systems": (Amplifier("a", 0.2),)}])
def test_other_settings_are_refused(tmp_path: Path, change: dict) -> None:
    asked = evaluation(tmp_path, Amplifier("a", 0.5))
    run(asked)
    rows = asked.folder.rows.read_bytes()
    with pytest.raises(UserError, match=r"was .* and is now .*: give --output a new folder"):
        run(dataclasses.replace(asked, **change))
    assert asked.folder.rows.read_bytes() == rows


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Line]:
    """Three recordings through codecs that are old acquaintances."""
    for program in ("c2enc", "opusenc"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    source = open_source("")
    names = ["identity", "noise", "opus@24"]
    names += [f"codec2@{mode}" for mode in ("450", "700C", "1200", "3200")]
    systems = open_systems(names, "mini", {})
    metrics = suite.load(["signal"], dict.fromkeys(suite.FILES, ""))
    folder = Folder(tmp_path_factory.mktemp("known"))
    chosen = choose(source.clips, "all", 0.0, 0)
    lines = run(Evaluation(source, chosen, 3.0, systems, metrics, folder, [], 2, 0))
    return {(line.domain, line.system): line for line in lines}


def test_identity_is_without_fault(known: dict[tuple[str, str], Line]) -> None:
    for domain in ("speech", "sound", "music"):
        values = known[domain, "identity"].values
        for name in ("log_mel_db", "log_mel_multi_db", "stft", "loudness_lu"):
            assert values[name].mean == 0.0
        assert values["si_sdr_db"].mean == pytest.approx(100.0)
        assert known[domain, "identity"].kbps == 512.0


def test_noise_is_the_worst(known: dict[tuple[str, str], Line]) -> None:
    for domain in ("speech", "sound", "music"):
        for name in ("log_mel_db", "log_mel_multi_db", "stft"):
            values = {s: line.values[name].mean for (d, s), line in known.items() if d == domain}
            assert max(values, key=values.__getitem__) == "noise", (domain, name)


def test_opus_at_24_kbps_is_nearly_transparent(known: dict[tuple[str, str], Line]) -> None:
    values = known["speech", "opus@24"].values
    assert values["log_mel_db"].mean < 1.0 and values["loudness_lu"].mean < 0.5
    assert values["si_sdr_db"].mean > 10


def test_codec2_gets_better_with_its_rate(known: dict[tuple[str, str], Line]) -> None:
    modes = [known["speech", f"codec2@{mode}"] for mode in ("450", "700C", "1200", "3200")]
    assert [mode.kbps for mode in modes] == sorted(mode.kbps for mode in modes)
    for name in ("log_mel_db", "stft"):
        distances = [mode.values[name].mean for mode in modes]
        assert distances == sorted(distances, reverse=True), name
