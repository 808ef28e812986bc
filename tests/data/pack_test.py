"""The command as its user runs it; what it writes, packing_test.py tests."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gac_jax.data.sources import open_source
from tests import commands

COMMAND = commands.load("gac_jax.data.pack")


@pytest.fixture
def pack(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[commands.Run]:
    with commands.runner(COMMAND, monkeypatch, capsys, lambda *words: ("pack", *words)) as run:
        yield run


def test_it_ends_with_what_was_packed_and_how_to_use_it(
    pack: commands.Run, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "speech" / "03.wav").write_text("not audio")
    monkeypatch.chdir(tmp_path)
    code, out, err = pack(f"--manifest={corpus}", "--out=sets/mine/", "--shards=2", "--workers=1")
    assert (code, err) == (0, "")
    packed, dropped, use = out.splitlines()
    assert packed.startswith("packed 22 clips, 3.74 s (11 speech, ")
    assert dropped.startswith("left out 1: is empty or in no known") and "speech/03.wav" in dropped
    assert use == f"train on it: --config.data.root=tfds:{tmp_path}/sets/mine:train"
    assert len(open_source(use.partition("=")[2])) == 22
    assert len(list((tmp_path / "sets" / "mine").glob("*.array_record-*"))) == 2
    assert os.listdir(tmp_path / "sets") == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--out=o"], "--root"),
        (["--root=r"], "--out"),
        (["--root=nowhere", "--out=o"], "nowhere: no such folder or manifest"),
        (["--root=r", "--out=o", "--shards=-1"], "--shards=-1"),
        (["--root=r", "--out=o", "--workers=-1"], "--workers=-1"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    pack: commands.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = pack(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and told in err
    assert os.listdir(tmp_path) == []


def test_it_runs_as_a_module(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    write_clip("in/speech/a.wav")
    command = [sys.executable, "-m", "gac_jax.data.pack", f"--root={tmp_path / 'in'}"]
    result = subprocess.run(
        [*command, f"--out={tmp_path / 'out'}"],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("packed 1 clips, 0.2 s (1 speech, 0.2 s)\n")
