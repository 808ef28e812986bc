"""Two processes of four devices each do what one process of eight devices does."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import soundfile

from tests import group, stages_group

pytestmark = [pytest.mark.usefixtures("standard_promotion"), pytest.mark.timeout(280)]

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 250  # seconds for all processes; they need a fraction of it on an idle machine


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tones in noise."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for number in range(12):
        tone = np.sin((0.02 + 0.01 * number) * np.arange(2000))
        wave = 0.3 * tone + 0.05 * rng.standard_normal(2000)
        soundfile.write(folder / f"{number}.wav", wave, 32_000)
    return folder


def start(
    module: str, folder: Path, count: int, *words: Path, **settings: str
) -> list[subprocess.Popen]:
    """Starts the processes of a group, which share eight devices."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    # NPROC is the size of the pool whose threads wait for collectives: see tests/conftest.py.
    devices = {"JAX_NUM_CPU_DEVICES": str(8 // count), "NPROC": "64"}
    line = [sys.executable, "-m", module, *map(str, words), str(folder), address, str(count)]
    return [
        subprocess.Popen(
            [*line, str(number)],
            cwd=ROOT,
            env={**os.environ, **devices, **settings},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for number in range(count)
    ]


def finish(processes: list[subprocess.Popen]) -> list[str]:
    """What they print, once all of them are done; those that hang are ended."""
    told, deadline = [], time.monotonic() + PATIENCE
    try:
        for process in processes:
            out, _ = process.communicate(timeout=max(deadline - time.monotonic(), 0))
            assert process.returncode == 0, out
            told.append(out)
    finally:
        for process in processes:
            process.kill()
    return told


@pytest.fixture(scope="module")
def finished(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes trained, were stopped, and trained to the end."""
    folder = tmp_path_factory.mktemp("group")
    for number, out in enumerate(finish(start("tests.group", folder, 2, clips))):
        (folder / f"out-{number}").write_text(out)
    return folder


def record(folder: Path, number: int) -> dict[str, Any]:
    return json.loads((folder / f"record-{number}.json").read_text())


@pytest.fixture(scope="module")
def alone(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Losses of an unbroken run in one process."""
    run = group.stage_run(clips, tmp_path_factory.mktemp("alone"), data=2, fsdp=4)
    with jax.numpy_dtype_promotion("standard"):
        return group.train(run)[1]


def test_losses_equal_those_of_one_process(finished: Path, alone: dict[str, float]) -> None:
    found = record(finished, 0)
    assert found["devices"] == 4
    last = f"train {group.STEPS}"
    assert last in alone and last in found["losses"]
    for name, loss in found["losses"].items():
        assert loss == pytest.approx(alone[name], rel=1e-6), name


def test_a_signal_to_one_stops_both_at_one_step(finished: Path) -> None:
    told = [record(finished, number)["told"] for number in range(2)]
    assert told[0] == told[1]
    step = re.fullmatch(r"toy: stopped at step (\d+); run again to go on", told[0])
    assert step and group.STOP_AFTER < int(step[1]) < group.STEPS
    assert (finished / "one" / "checkpoints" / step[1]).is_dir()


def test_what_two_began_one_goes_on_with(
    clips: Path, finished: Path, alone: dict[str, float]
) -> None:
    _, losses = group.train(group.stage_run(clips, finished / "one", data=4, fsdp=2))
    assert f"train {group.STEPS}" in losses and "train 1" not in losses
    for name, loss in losses.items():
        assert loss == pytest.approx(alone[name], rel=1e-6), name


def test_what_two_saved_one_restores_bit_for_bit(clips: Path, finished: Path) -> None:
    run = group.stage_run(clips, finished / "both", data=2, fsdp=4)
    state, losses = group.train(run)  # of a finished stage: restored, on another mesh
    assert losses == {}
    for number in range(2):
        with np.load(finished / f"state-{number}.npz") as saved:
            jax.tree.map(
                np.testing.assert_array_equal, list(saved.values()), jax.tree.leaves(state)
            )


def test_only_the_first_process_prints(finished: Path) -> None:
    first, second = ((finished / f"out-{number}").read_text() for number in range(2))
    assert "process group: 2 processes, 8 devices\n" in first and "train step 1:" in first
    # Gloo's threads write into each other's lines.
    told = [line for line in second.splitlines() if not re.search(r"Gloo|peer ranks|^\s*$", line)]
    assert told == []


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, float]]]:
    """What the real stages log in a process alone, and in each of two; all run at once."""
    alone, both = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("both")
    # Programs of this size run in no time however they are compiled.
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    quickly = {"XLA_FLAGS": f"{flags} --xla_cpu_parallel_codegen_split_count=1"}
    finish(
        start("tests.stages_group", alone, 1, **quickly)
        + start("tests.stages_group", both, 2, **quickly)
    )
    assert (both / "model" / "config.json").is_file()
    files = (alone / "metrics-0.json", both / "metrics-0.json", both / "metrics-1.json")
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("stage", stages_group.settings().stages)
@pytest.mark.parametrize("number", [0, 1])
def test_real_stages_log_in_each_of_two_what_they_log_alone(
    metrics: list[dict[str, dict[str, float]]], stage: str, number: int
) -> None:
    alone, found = metrics[0], metrics[1 + number]
    steps = [f"{stage} {step}" for step in range(1, stages_group.STEPS + 1)]
    assert set(steps) <= set(alone) and set(alone) == set(found)
    for step in steps:
        assert alone[step].keys() == found[step].keys() and "gradient_norm" in found[step]
        for name, value in found[step].items():
            # Sums differ in order only; `info` is a small difference of larger ones.
            limit = 1e-6 if name == "loss" else 1e-5
            assert value == pytest.approx(alone[step][name], rel=limit, nan_ok=True), (
                f"{step} {name}"
            )
