import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from tests.commands import Run, load, runner

listening, FLAGS = load("gac_jax.listening")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Runs the command in this process, in tmp_path."""
    monkeypatch.chdir(tmp_path)
    command = listening, FLAGS
    with runner(
        command, monkeypatch, capsys, lambda *a: listening.as_flags(["listening", *a])
    ) as call:
        yield call


@pytest.fixture
def evaluation(tmp_path: Path, rng: np.random.Generator) -> Path:
    """What gac_jax.evaluate leaves of one clip."""
    folder = tmp_path / "evaluation"
    clip = folder / "clips" / "speech-000"
    clip.mkdir(parents=True)
    for system in ("reference", "gac@0.275"):
        soundfile.write(clip / f"{system}.wav", 0.1 * rng.standard_normal(20_000), 32_000)
    row = {"id": "speech-000", "path": "a.flac", "domain": "speech", "seconds": 0.625}
    (folder / "clips.jsonl").write_text(json.dumps(row) + "\n")
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two assessors of one page; Bo does not hear the reference."""
    lines = ["session_test_id,assessor,trial_id,rating_stimulus,rating_score"]
    for who, reference in (("Ann", 100), ("Bo", 40)):
        scores = {"reference": reference, "gac@0.275": 70, "anchor70": 50, "anchor35": 20}
        lines += [f"gac,{who},speech:speech-000,{name},{n}" for name, n in scores.items()]
    path = tmp_path / "mushra.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_export_and_its_ratings_fit_together(run: Run, evaluation: Path) -> None:
    result = run("export", f"--systems_dir={evaluation}", "--output=out")
    assert result == (0, "out/configs/gac.yaml: 1 pages of gac@0.275\n", "")
    test = yaml.safe_load(Path("out/configs/gac.yaml").read_text())
    page = test["pages"][3][1][1]
    lines = [f"gac,Ann,{page['id']},{name},95" for name in (*page["stimuli"], "reference")]
    header = "session_test_id,assessor,trial_id,rating_stimulus,rating_score"
    Path("mushra.csv").write_text("\n".join([header, *lines]) + "\n")
    assert run("analyse", "mushra.csv", "--output=out").code == 2  # the anchor is above 90
    Path("mushra.csv").write_text("\n".join([header, *lines]).replace("anchor70,95", "anchor70,9"))
    assert "| gac@0.275 | 95.0 ± - | 95.0 ± - |" in run("analyse", "mushra.csv", "--output=o").out


def test_analyse_writes_the_table_and_the_figure(run: Run, results: Path) -> None:
    result = run("analyse", str(results), "--output=out")
    assert result.code == 0 and "- Bo: hidden reference below 90 on 100% of items" in result.out
    assert Path("out/listening.md").read_text() == result.out
    assert {path.suffix for path in Path("out").iterdir()} == {".md", ".csv", ".png", ".svg"}
    assert "gac@0.275,speech,70.0,nan,1,1" in Path("out/listening.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output=out"], "say what to do: export or analyse (--help tells more)"),
        (["export", "--output=out"], "--systems_dir: give it with export"),
        (["analyse", "--output=out"], "--results: give it with analyse"),
        (["analyse", "no.csv", "--output=out"], "no.csv: cannot be read; give webMUSHRA's"),
        (["analyse", "a.csv", "b.csv", "--output=out"], "unexpected argument 'b.csv'"),
        (["export", "--systems_dir=none", "--output=out"], "none/clips.jsonl: does not exist"),
        (["explore", "--output=out"], "value should be one of <export|analyse>"),
        (["export", "--systems_dir=x", "--output=out", "--seconds=13"], "[1.0, 12.0]"),
    ],
)
def test_mistakes_are_told_in_one_line(run: Run, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err and result.err.count("\n") == 1


def test_what_exists_is_kept_unless_told_otherwise(
    run: Run, evaluation: Path, results: Path
) -> None:
    for arguments in (["export", f"--systems_dir={evaluation}"], ["analyse", str(results)]):
        assert run(*arguments, "--output=out").code == 0
        again = run(*arguments, "--output=out")
        assert again.code == 2 and "exists; pass --overwrite" in again.err
        assert run(*arguments, "--output=out", "--overwrite").code == 0


def test_the_words_of_the_command_line_are_understood(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gac_jax.listening", "analyse", "no.csv", "--output=out"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "error: no.csv: cannot be read; give webMUSHRA's mushra.csv\n"
