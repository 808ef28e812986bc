"""The command as its user runs it; what it measures, training/probe_test.py tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import listening

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 280  # seconds for a process to get anywhere; it needs twenty on an idle machine


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Small programs run in no time however they are compiled; unoptimised they compile in half.
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def probe(*arguments: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "gac_jax.probe", "--config=tests/config.py", *arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--output=o"], "--workdir"),
        (["--workdir=w"], "--output"),
        (["--workdir=w", "--output=o", "--split=test"], "--split=test"),
        (["--workdir=w", "--output=o", "--clips=-1"], "--clips=-1"),
        (
            ["--workdir=w", "--output=o", "--rates=0,3"],
            "--rates: '3' is none of 0, 1, 2, 4, 8 residual codebooks",
        ),
        (["--workdir=w", "--output=o", "--rates=all"], "'all' is none of"),
        (["--workdir=w", "--output=o", "--rates="], "'' is none of"),
        (["--workdir=w", "--output=setup.py"], "setup.py: is not a folder; write to another"),
        (["--workdir=w", "--output=o"], "w/understanding: no checkpoint here"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: list[str], told: str) -> None:
    result = probe("--config.data.validation_percent=90", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert told in result.stderr
    assert not (ROOT / "o").exists() and not (ROOT / "w").exists()


@pytest.mark.slow
def test_a_run_is_trained_and_probed(tmp_path: Path) -> None:
    listening.write_corpus(tmp_path / "corpus")
    listening.write_language_model(tmp_path / "language_model")
    run = (
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.root={tmp_path / 'corpus' / 'manifest.csv'}",
        "--config.data.validation_percent=0",
        f"--config.language_model.path={tmp_path / 'language_model'}",
        "--config.language_model.max_tokens=48",
        "--config.understanding.objective.weights.text=1",
        "--config.understanding.objective.text_after=0",
    )
    lengths = ("--config.stages=('understanding',)", "--config.understanding.steps=2")
    trained = python("-m", "gac_jax.train", "--config=tests/config.py", *run, *lengths)
    assert trained.returncode == 0, trained.stderr
    output = tmp_path / "new" / "findings"
    result = probe(*run, f"--output={output}", "--split=train", "--rates=2,0,2")
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(os.listdir(output)) == ["answers.jsonl", "probe.json", "report.md"]
    assert (output / "report.md").read_text(encoding="utf-8") == result.stdout
    assert result.stdout.startswith("# understanding at step 2: clips of the split train (5 speech")
    record = json.loads((output / "probe.json").read_text())
    assert len(record["codebooks"]) == 4 * 9 and record["transcripts"] and record["labels"]
    whole = [row for row in record["texts"] if row["domain"] == "all"]
    assert [(row["rate"], row["clips"]) for row in whole] == [(2, 8), (0, 8)]
    lines = (output / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 8
    assert all(list(json.loads(line)["answers"]) == ["2", "0"] for line in lines)
