import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gac_jax import codec
from gac_jax.data.tokens import TokenSource
from tests.commands import Run, load, runner

command = load("gac_jax.tokenize")
LOAD_ONCE = functools.cache(codec.load)  # spares the tests tracing the same programs again


@pytest.fixture
def run(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rng: np.random.Generator,
) -> Iterator[Run]:
    """Runs the command in this process, in tmp_path with a corpus of three clips in in/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(codec, "load", LOAD_ONCE)
    Path("in").mkdir()
    for name in ("a", "b", "c"):
        soundfile.write(f"in/{name}.wav", 0.1 * rng.standard_normal(9_000), 32_000)
    with runner(
        command, monkeypatch, capsys, lambda *a: ["tokenize", f"--model={tiny_model}", *a]
    ) as call:
        yield call


def test_a_corpus_is_tokenised_by_two_processes(run: Run) -> None:
    flags = ("--root=in", "--out=new/set", "--shards=3", "--process_count=2")
    first, second = (run(*flags, f"--process_index={index}") for index in (0, 1))
    assert (first.code, first.err, second.code, second.err) == (0, "", 0, "")
    lines = first.out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "tokens-00000-of-00003",
        "tokens-00002-of-00003",
        "new/set",
    ]
    assert "2 clips, 0.562 s of audio in" in lines[2] and "real-time factor" in lines[2]
    assert lines[2].endswith("; 2 of 3 shards are there")
    assert second.out.splitlines()[-1].endswith("; 3 of 3 shards are there")
    assert len(TokenSource("new/set")) == 3


def test_a_manifest_does_as_well_and_what_is_dropped_is_told(run: Run) -> None:
    Path("in/b.wav").write_text("not audio")
    Path("m.csv").write_text("path,domain\nin/a.wav,sound\nin/b.wav,sound\nin/gone.wav,sound\n")
    result = run("--manifest=m.csv", "--out=set")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert "; 2 dropped; 1 of 1 shards are there" in lines[1]
    assert lines[2].startswith("  dropped in/b.wav: ") and "no known audio format" in lines[2]
    assert lines[3].startswith("  dropped in/gone.wav: ") and len(lines) == 4
    again = run("--manifest=m.csv", "--out=set")
    assert again.out == "set: 0 clips, 0 s of audio; 1 of 1 shards are there\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--root=in"], "--out"),
        (["--root=gone", "--out=o"], "gone: no such folder or manifest"),
        (["--root=in", "--out=o", "--model=gone"], "gone: no such model"),
        (["--root=in", "--out=in/a.wav"], "in/a.wav: is not a folder"),
        (["--root=in", "--out=o", "--shards=4"], "--shards=4: the corpus has only 3 clips"),
        (["--root=in", "--out=o", "--process_index=1"], "--process_index=1: must be less than"),
        (["--root=in", "--out=o", "--batch_size=0"], "--batch_size"),
    ],
)
def test_a_mistake_is_told_in_one_line(run: Run, arguments: list[str], told: str) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
    assert told in result.err
    assert not Path("o").exists()
