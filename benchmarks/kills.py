"""Kills a small run again and again, at random points, and compares where it ends.

    python benchmarks/kills.py --kills=20

All stages train at a size that compiles in seconds, or with --tiny at that of `configs/tiny.py`:
once unbroken, and once with `kill -9` between or within steps, and every second time while a
checkpoint is being written.
Prints a table of the kills, and whether the two runs end with the same states and the same model,
bit for bit; exits with 1 if not.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict

_KILLS = flags.DEFINE_integer("kills", 20, "How often.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the points in time.")
_TINY = flags.DEFINE_boolean("tiny", False, "Train `tiny` as it is, which takes minutes.")
_ROOT = flags.DEFINE_string("root", "", "Of the audio; by default the bundled clips.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where to; without it, a temporary folder.")

STAGES = ("understanding", "generation", "meanflow", "adversarial")
TABLE = "{:>4}  {:<13}  {:<8}  {:>10}  {:>10}  {:>10}"


def main(_: list[str]) -> None:
    """Runs unbroken, runs broken, compares."""
    logging.set_verbosity(logging.WARNING)  # orbax tells every step otherwise
    with contextlib.ExitStack() as stack:
        folder = _WORKDIR.value or stack.enter_context(tempfile.TemporaryDirectory())
        Path(folder).mkdir(parents=True, exist_ok=True)
        unbroken, broken = Path(folder, "unbroken"), Path(folder, "broken")
        steps = 5 * _KILLS.value  # of each stage: a kill comes a few steps after the one before
        # Small programs run in no time however they are compiled; unoptimised they compile in half.
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
        _finish(unbroken, steps)
        _break(broken, steps)
        _finish(broken, steps)
        sys.exit(_compare(unbroken, broken, steps))


def train(workdir: Path, steps: int, whole: bool, root: str) -> None:
    """What a killed process did: everything that the command does after its flags."""
    with open(f"{workdir}.log", "a", encoding="utf-8", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    from configs import tiny
    from gac_jax import cli
    from gac_jax.training import stages

    cli.use_compilation_cache()
    config = tiny.get_config()
    if not whole:
        _shrink(config)
    config.update(stages=STAGES)
    config.data.root = root
    for stage in STAGES:
        config[stage].update(steps=steps, save_every=2, log_every=1)
    stages.run(config, workdir)


def _shrink(config: ConfigDict) -> None:
    small = {"width": 16, "depth": 1, "acoustic_width": 16, "acoustic_depth": 1}
    config.encoder.update(**small, acoustic_mels=16, acoustic_features=8, ripple_features=8)
    config.quantizer.update(width=16, semantic_dim=8, residual_dim=32, partials_dim=24)
    config.decoder.update(width=64, depth=2)
    config.understanding.update(batch_size=2, crop_frames=4)
    for stage in STAGES[1:]:
        config[stage].batch_size = 2
    config.adversarial.objective.critic_widths = (8, 16)


def _start(workdir: Path, steps: int) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("forkserver")  # one that has imported all, for all
    context.set_forkserver_preload(["configs.tiny", "gac_jax.cli", "gac_jax.training.stages"])
    process = context.Process(target=train, args=(workdir, steps, _TINY.value, _ROOT.value))
    process.start()
    return process


def _finish(workdir: Path, steps: int) -> None:
    process = _start(workdir, steps)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"a run failed: see {workdir}.log")


def _break(workdir: Path, steps: int) -> None:
    """Starts and kills, and starts again; each stage has its share of the kills, in their order."""
    draw, late = random.Random(_SEED.value), 1.0 if _TINY.value else 0.2  # a few steps, seconds
    print(TABLE.format("kill", "stage", "moment", "went on at", "last whole", "half there"))
    for number in range(1, _KILLS.value + 1):
        place, drafts, saving = _place(workdir), _drafts(workdir), number % 2 == 0
        stage = STAGES[(number - 1) * len(STAGES) // _KILLS.value]
        process = _start(workdir, steps)
        while not _due(workdir, stage, place, drafts if saving else None):
            if process.exitcode is not None:
                raise RuntimeError(f"a run came to its end before its time: see {workdir}.log")
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.05 if saving else late))
        process.kill()
        process.join()
        stage, last = _place(workdir)
        moment = "saving" if saving else "anywhere"
        row = (number, stage, moment, place[1], last, len(_drafts(workdir)))
        print(TABLE.format(*row), flush=True)


def _due(workdir: Path, stage: str, place: tuple[str, int], drafts: set[int] | None) -> bool:
    """Whether `stage` has a new checkpoint: a whole one, or another draft than `drafts`."""
    now = _place(workdir)
    if STAGES.index(now[0]) < STAGES.index(stage):
        return False
    return now != place if drafts is None else bool(_drafts(workdir) - drafts)


def _place(workdir: Path) -> tuple[str, int]:
    """The stage that runs, and the step of its newest whole checkpoint."""
    from gac_jax.training.checkpoints import latest_step

    steps = {stage: latest_step(str(workdir / stage)) or 0 for stage in STAGES}
    stage = max(STAGES, key=lambda name: (steps[name] > 0, STAGES.index(name)))
    return stage, steps[stage]


def _drafts(workdir: Path) -> set[int]:
    """Checkpoints that are only half there; one that is written anew is another."""
    found: set[int] = set()
    for path in workdir.glob("*/checkpoints/*tmp*"):
        with contextlib.suppress(FileNotFoundError):  # it has just become whole
            found.add(path.stat().st_ino)
    return found


def _compare(unbroken: Path, broken: Path, steps: int) -> int:
    """Prints what is equal; returns the exit code."""
    import numpy as np
    import orbax.checkpoint as ocp
    from jax import tree

    def states(workdir: Path) -> list[np.ndarray]:
        places = [workdir / stage / "checkpoints" / str(steps) / "state" for stage in STAGES]
        with ocp.StandardCheckpointer() as reader:
            return [np.asarray(x) for place in places for x in tree.leaves(reader.restore(place))]

    pairs = list(zip(states(unbroken), states(broken), strict=True))
    equal = sum(np.array_equal(a, b) for a, b in pairs)
    models = [path / "model" / "weights.safetensors" for path in (unbroken, broken)]
    same = models[0].read_bytes() == models[1].read_bytes()
    print(f"arrays of the last states that are equal: {equal} of {len(pairs)}")
    print(f"models equal: {'yes' if same else 'NO'}")
    return 0 if same and equal == len(pairs) else 1


if __name__ == "__main__":
    app.run(main)
