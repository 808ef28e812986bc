"""The command line; what it does, tests/evaluation/ tests."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gac_jax.evaluation.folder import read_rows
from tests.commands import Run, load, runner

evaluate, FLAGS = load("gac_jax.evaluate")
ROOT = Path(__file__).resolve().parents[1]
# Copies a file; the call whose number stands in the file "fatal" kills the command instead.
COPY = """
import os, shutil, signal, sys
folder, source, target = sys.argv[1:]
count = len(os.listdir(folder + '/calls'))
open(f'{folder}/calls/{count}', 'w').close()
if os.path.exists(folder + '/fatal') and count == int(open(folder + '/fatal').read()):
    os.kill(os.getppid(), signal.SIGKILL)
shutil.copy(source, target)
"""


@pytest.fixture
def run(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Run]:
    """Runs the command in this process, in tmp_path, with the tiny model and signal metrics."""
    monkeypatch.chdir(tmp_path)
    command = evaluate, FLAGS
    with runner(
        command,
        monkeypatch,
        capsys,
        lambda *a: ["evaluate", f"--model={tiny_model}", "--metrics=signal", *a],
    ) as call:
        yield call


@pytest.fixture
def clips(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Three sounds and two clips of music, of 0.2 s."""
    for name in ("sound/0", "sound/1", "sound/2", "music/0", "music/1"):
        path = tmp_path / "in" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(6_400), 32_000)
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--output"),
        (["--output=o", "--input=i", "--manifest=m"], "--manifest and --input: give one of them"),
        (["--output=o", "--input=none"], "none: no such folder or manifest"),
        (["--output=o", "--systems=telegraph"], "'telegraph' is not known; a system is one of"),
        (["--output=o", "--systems=opus@6"], "install the Debian package opus-tools"),
        (["--output=o", "--systems=noise", "--metrics=wet"], "'wet' is none of all, wer"),
        (["--output=in"], "in/report.html: is a folder"),
        (["--output=o", "--split=test"], "--split=test"),
        (["--output=o", "--split=held_out"], "no clip is held out: raise --validation_percent"),
    ],
)
def test_a_mistake_is_told_in_one_line_before_anything_runs(
    run: Run, arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("in", "report.html").mkdir(parents=True)
    monkeypatch.setenv("PATH", "")
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
    assert told in result.err
    assert not Path("o").exists()


def test_models_and_runs_compare(run: Run, clips: Path, tiny_model: Path) -> None:
    common = ("--input=in", "--clips=1", "--shown=0", "--steps=1", "--seed=4")
    assert run(*common, "--systems=noise", "--output=one").code == 0
    systems = f"--systems=gac@0.175,gac:{tiny_model}@0.975"
    result = run(*common, systems, "--with=one", "--output=two")
    assert (result.code, result.err) == (0, "")
    names = re.findall(r"^\| (\S+) +\| +1 \|", result.out, re.MULTILINE)
    assert names == 2 * ["gac@0.175", "gac-random@0.975", "noise"]
    settings = json.loads(Path("two/settings.json").read_text())["systems"]
    assert settings["gac@0.175"]["seed"] == 4 and settings["gac@0.175"]["steps"] == 1
    assert Path("two/figure3.svg").is_file()
    table = Path("two/table.md").read_text(encoding="utf-8")
    assert result.out in table and "## Bits against parameters, music" in table
    told = "error: three/clips.jsonl: missing, or not the clips of this run; leave it out\n"
    assert run(*common, systems, "--with=three", "--output=two").err == told


def test_killed_and_started_again_it_goes_on(run: Run, clips: Path, tmp_path: Path) -> None:
    for name, text in (("courier.py", COPY), ("fatal", "5")):
        (tmp_path / name).write_text(text)
    (tmp_path / "calls").mkdir()
    copy = f"{sys.executable} {tmp_path}/courier.py {tmp_path}"
    system = f"--systems=cmd:copy:{copy} {{in}} {{bits}}:{copy} {{bits}} {{out}},identity"
    options = (system, "--input=in", "--output=out", "--workers=1", "--shown=1")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "gac_jax.evaluate", "--metrics=signal", *options]
    killed = subprocess.run(command, cwd=tmp_path, env=environment, timeout=280, check=False)
    assert killed.returncode == -9
    before = read_rows(tmp_path / "out" / "metrics.jsonl")
    assert len(before) == 2  # two calls for each clip; the sixth was fatal
    done = run(*options)
    assert (done.code, done.err) == (0, "")
    assert len(os.listdir(tmp_path / "calls")) == 6 + 2 * 3
    rows = {(row["system"], row["clip"]): row for row in read_rows(tmp_path / "out/metrics.jsonl")}
    assert len(rows) == 10 and not any("error" in row for row in rows.values())
    for row in before:
        assert rows["copy", row["clip"]]["encode_seconds"] == row["encode_seconds"]
    assert "\n| copy " in done.out and (tmp_path / "out" / "report.html").is_file()
