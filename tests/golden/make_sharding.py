"""Writes how the training states of every configuration are split over eight devices.

Run by hand after a wanted change of the rules or of a model, and read the difference:

    python -m tests.golden.make_sharding

sharding/NAME.json holds for each stage, by path, the shape and its split on the three meshes of
`MESHES` (data x fsdp x tensor), "-" for an axis that stays whole. Averages and moments are left
out: they are split as their parameters (tests/sharding_test.py).
"""

import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import jax

from gac_jax.sharding import make_mesh, shardings
from gac_jax.training.optimizer import OptimizerConfig, make_optimizer, path_name
from gac_jax.training.stages import STAGES, build_task
from gac_jax.training.state import TrainState, init_state

FOLDER = Path(__file__).parent / "sharding"
CONFIGS = ("tiny", "mini", "small", "medium", "large", "xl")
MESHES = {"8x1x1": (8, 1, 1), "2x4x1": (2, 4, 1), "2x2x2": (2, 2, 2)}
COPIES = ("ema/", "opt_state/")

Table = dict[str, Any]


@cache
def abstract_state(config: str, stage: str) -> TrainState:
    settings = importlib.import_module(f"configs.{config}").get_config()
    task = build_task(stage, settings)
    optimizer = make_optimizer(OptimizerConfig(**settings[stage].optimizer), steps=10)
    return jax.eval_shape(lambda: init_state(task, optimizer, 0, {}))


def table(config: str) -> Table:
    return {"columns": ["shape", *MESHES]} | {stage: rows(config, stage) for stage in STAGES}


def rows(config: str, stage: str) -> dict[str, list[str]]:
    state = abstract_state(config, stage)
    layouts = [shardings(make_mesh(*sizes), state) for sizes in MESHES.values()]
    flat = jax.tree_util.tree_leaves_with_path(state)
    columns = zip(*map(jax.tree.leaves, layouts), strict=True)
    return {
        path_name(path): [
            " ".join(map(str, leaf.shape)),
            *(" ".join(axis or "-" for axis in sharding.spec) for sharding in split),
        ]
        for (path, leaf), split in zip(flat, columns, strict=True)
        if not path_name(path).startswith(COPIES)
    }


def text(found: Table) -> str:
    """JSON with one path to a line."""
    parts = []
    for key, value in found.items():
        if isinstance(value, dict):
            lines = (f"    {json.dumps(path)}: {json.dumps(row)}" for path, row in value.items())
            parts.append(f"  {json.dumps(key)}: {{\n" + ",\n".join(lines) + "\n  }")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    FOLDER.mkdir(exist_ok=True)
    for config in CONFIGS:
        (FOLDER / f"{config}.json").write_text(text(table(config)), encoding="utf-8")


if __name__ == "__main__":
    main()
