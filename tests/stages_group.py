"""One process of a group that trains both real stages, for tests/multihost_test.py.

python -m tests.stages_group FOLDER HOST:PORT COUNT NUMBER
"""

import json
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gac_jax import distributed
from gac_jax.training import loop, stages
from tests import config as smallest

STEPS = 3


def settings() -> ConfigDict:
    """Both stages at the size of tests/config.py, every large array split over all devices."""
    config = smallest.get_config()
    config.mesh.update(data=1, fsdp=8)
    # A product in bfloat16 makes a difference in the eighth digit, by which sums over processes
    # differ from those over threads, one in the third: docs/scaling.md, "Two processes".
    config.matmul_precision = "float32"
    config.data.validation_percent = 0.0  # no third program to compile
    config.understanding.objective.warmup_steps = 1  # then codes are chosen, and means move
    for stage in (config.understanding, config.generation):
        stage.update(steps=STEPS)
    return config


def train(config: ConfigDict, folder: Path) -> dict[str, dict[str, float]]:
    """Trains both stages: all that they log, by stage and step."""
    found: dict[str, dict[str, float]] = {}

    class Recorder(loop.Log):
        def __init__(self, folder: str, name: str, *rest: Any) -> None:
            super().__init__(folder, name, *rest)
            self.name = name

        def write(self, step: int, group: str, values: dict[str, float]) -> None:
            values = {name: value for name, value in values.items() if name != "seconds_per_step"}
            if values:
                found[f"{self.name} {step}"] = values
            super().write(step, group, values)

    real, loop.Log = loop.Log, Recorder
    try:
        stages.run(config, folder)
    finally:
        loop.Log = real
    return found


def main(folder: Path, place: distributed.Place) -> None:
    distributed.join(place)
    found = train(settings(), folder)
    (folder / f"metrics-{place.process_id}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    words = sys.argv[1:]
    main(Path(words[0]), distributed.Place(words[1], int(words[2]), int(words[3])))
