from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gac_jax import aot
from tests.commands import Run, load, runner

COMMAND = load("gac_jax.export")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the decoder was compiled for, without the minute that this takes."""
    calls: list[Any] = []

    def pack(*arguments: Any) -> bytes:
        calls.append(arguments)
        return bytes(2_000_000)

    monkeypatch.setattr(aot, "pack", pack)
    return calls


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    monkeypatch.chdir(tmp_path)
    with runner(COMMAND, monkeypatch, capsys, lambda *a: ["export", *a]) as call:
        yield call


def test_it_writes_the_bundled_decoder_for_all_platforms(
    run: Run, asked: list[Any], tmp_path: Path
) -> None:
    result = run()
    assert (result.code, result.err) == (0, "")
    assert result.out == "decoder.gacx: 2.0 MB for cpu, cuda, tpu\n"
    assert (tmp_path / "decoder.gacx").stat().st_size == 2_000_000
    assert asked == [("mini", ["cpu", "cuda", "tpu"], None, None, None, None)]


def test_every_flag_is_heard(run: Run, asked: list[Any], tmp_path: Path) -> None:
    settings = (
        "--platforms=tpu,cpu",
        "--steps=4",
        "--solver=heun",
        "--guidance=2",
        "--temperature=0.5",
    )
    assert run("--model=folder", "--output=out/a.gacx", *settings).code == 0
    assert (tmp_path / "out" / "a.gacx").exists()
    assert asked == [("folder", ["tpu", "cpu"], 4, "heun", 2.0, 0.5)]


def test_a_file_is_replaced_only_on_demand(run: Run, asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "decoder.gacx").write_bytes(b"old")
    refused = run()
    assert (refused.code, asked) == (2, [])
    assert refused.err.startswith("error: decoder.gacx: exists") and refused.err.count("\n") == 1
    assert run("--overwrite").code == 0
    assert (tmp_path / "decoder.gacx").stat().st_size == 2_000_000


def test_mistakes_are_told_in_one_line(run: Run, tmp_path: Path) -> None:
    for flag, told in {
        "--model=nonsense": "no such model",
        "--platforms=gpu": "platforms must be some of cpu, cuda, tpu",
        "--steps=0": "--steps",
        "--guidance=nan": "must be 0 .. 20",
        "--temperature=3": "must be 0 .. 2",
    }.items():
        result = run(flag)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert told in result.err
    assert list(tmp_path.iterdir()) == []
