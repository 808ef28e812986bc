"""One process of a group that trains the toy stage: what tests/multihost_test.py starts twice.

    python -m tests.group CLIPS FOLDER HOST:PORT COUNT NUMBER

Process 1 is asked to stop while it takes its third batch. Then the group goes on to the end.
"""

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from gac_jax import distributed
from gac_jax.data.pipeline import train_batches, validation_batches
from gac_jax.sharding import make_mesh
from gac_jax.training import loop
from gac_jax.training.loop import LoopConfig, StageRun, run_stage
from gac_jax.training.state import TrainState
from gac_jax.training.stop import Interrupted
from tests.toy import OPTIMIZER, ROWS, Toy

STEPS, CROP, SEED = 6, 64, 3
STOP_AFTER = 3


class Stream:
    """Batches of this process; the process is asked to stop while it takes one of them."""

    def __init__(self, batches: Any, stop_at: int) -> None:
        self.batches, self.left = batches, stop_at

    def __next__(self) -> dict[str, np.ndarray]:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)
        return next(self.batches)

    def close(self) -> None:
        self.batches.close()


def stage_run(clips: Path, folder: Path, stop_at: int = 0, **axes: int) -> StageRun:
    """The toy stage on this process's share of the clips."""
    data = ConfigDict({"root": str(clips), "domain_weights": {"other": 1.0}, "num_threads": 2})
    data.update(validation_percent=40.0, gain_jitter_db=6.0)
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}

    def train(first: int) -> Stream:
        return Stream(train_batches(data, ROWS, CROP, SEED, first, **share), stop_at)

    intervals = {"log_every": 1, "eval_every": 2, "save_every": 2, "keep": 9}
    return StageRun(
        task=Toy(CROP),
        loop=LoopConfig(steps=STEPS, seed=SEED, ema_decay=0.9, max_skipped=2, **intervals),
        optimizer=OPTIMIZER,
        config={"name": "toy"},
        folder=str(folder),
        mesh=make_mesh(**axes),
        frozen={"offset": {"bias": np.ones((2,), np.float32)}},
        start={},
        data="clips",
        train_batches=train,
        validation_batches=lambda: validation_batches(data, ROWS, CROP, 1, **share),
    )


def train(run: StageRun) -> tuple[TrainState, dict[str, float]]:
    """Runs a stage: its state, and the losses that it logged, by group and step."""
    losses: dict[str, float] = {}

    class Recorder(loop.Log):
        def write(self, step: int, group: str, values: dict[str, float]) -> None:
            losses[f"{group} {step}"] = values["loss"]
            super().write(step, group, values)

    real, loop.Log = loop.Log, Recorder
    try:
        with jax.set_mesh(run.mesh):
            return run_stage(run), losses
    finally:
        loop.Log = real


def main(clips: Path, folder: Path, place: distributed.Place) -> None:
    distributed.join(place)
    distributed.check_shared(folder)
    axes = {"data": 1, "fsdp": 8}  # every array is split over both processes
    stop_at = STOP_AFTER if place.process_id == 1 else 0
    try:
        train(stage_run(clips, folder / "both", stop_at, **axes))
    except Interrupted as stop:
        told = str(stop)
    if distributed.is_first():
        shutil.copytree(folder / "both", folder / "one")
    state, losses = train(stage_run(clips, folder / "both", **axes))
    leaves = jax.tree.leaves(distributed.gather(state))
    np.savez(folder / f"state-{place.process_id}.npz", *leaves)
    record = {"told": told, "losses": losses, "devices": jax.local_device_count()}
    (folder / f"record-{place.process_id}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    words = sys.argv[1:]
    main(Path(words[0]), Path(words[1]), distributed.Place(words[2], int(words[3]), int(words[4])))
