"""Two processes of four devices each do what one process of eight devices does."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import soundfile

from tests import group

pytestmark = [pytest.mark.usefixtures("standard_promotion"), pytest.mark.timeout(280)]

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 250  # seconds for both processes; they need ten on an idle machine


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tones in noise."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for number in range(12):
        tone = np.sin((0.02 + 0.01 * number) * np.arange(2000))
        wave = 0.3 * tone + 0.05 * rng.standard_normal(2000)
        soundfile.write(folder / f"{number}.wav", wave, 32_000)
    return folder


@pytest.fixture(scope="module")
def finished(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes trained, were stopped, and trained to the end."""
    folder = tmp_path_factory.mktemp("group")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    # NPROC is the size of the pool whose threads wait for collectives: see tests/conftest.py.
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4", "NPROC": "64"}
    line = [sys.executable, "-m", "tests.group", str(clips), str(folder), address, "2"]
    processes = [
        subprocess.Popen(
            [*line, str(number)],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for number in range(2)
    ]
    try:
        for number, process in enumerate(processes):
            out, _ = process.communicate(timeout=PATIENCE)
            (folder / f"out-{number}").write_text(out)
            assert process.returncode == 0, out
    finally:
        for process in processes:
            process.kill()
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
