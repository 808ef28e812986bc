"""How fast crops come from storage, against how fast training takes them.

    python benchmarks/speed.py --what=train --sizes=tiny,mini,small > steps.jsonl
    python benchmarks/pipeline.py --root=opus=MANIFEST --root=packed=tfds:PACKED:train \
        --trainer=steps.jsonl

Draws crops as `gac_jax.train` does, on one processor core and without a network. Prints a JSON line
for each root and size, then a table:

  crops/s      crops, each of another clip that is opened for it, by a core in a second that it
               works: time in which the machine does something else does not count
  audio s/s    seconds of audio in them
  MB/s         float32 samples in them
  taken/s      crops that the trainer takes: those of a batch by the time of a step
  times        how many trainers a core could feed; below 1, training needs more cores
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from absl import app, flags

from gac_jax.data.pipeline import train_batches
from gac_jax.rates import FRAME_RATE, FRAME_SAMPLES

_ROOTS = flags.DEFINE_multi_string("root", ["bundled="], "NAME=ROOT, as many as you like.")
_SIZES = flags.DEFINE_list("sizes", ["tiny", "mini", "small"], "Names of files in configs/.")
_TRAINER = flags.DEFINE_string("trainer", "", "What `speed.py --what=train` printed.")
_BATCHES = flags.DEFINE_integer("batches", 16, "Batches to draw.", 1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Crops in each.", 1)

Row = dict[str, Any]


def main(_: list[str]) -> None:
    """Measures and prints."""
    taken, rows = read_trainer(_TRAINER.value), []
    for size in _SIZES.value:
        for name, _, root in (text.partition("=") for text in _ROOTS.value):
            row = {"size": size, "root": name, **measure(size, root)}
            if size in taken:
                row |= {"taken_per_s": taken[size], "times": row["crops_per_s"] / taken[size]}
            rows.append(row)
            print(json.dumps(row), flush=True)
    print(table(rows), file=sys.stderr)


def measure(size: str, root: str) -> Row:
    """Draws crops of the length that a configuration asks for, with no thread beside this one."""
    config = importlib.import_module(f"configs.{size}").get_config()
    data, frames = config.data, config.generation.crop_frames
    data.update(root=root, num_threads=0, validation_percent=0.0)
    batches = train_batches(data, _BATCH_SIZE.value, frames * FRAME_SAMPLES, config.seed)
    with closing(batches):
        next(batches)
        start = time.process_time()
        samples = [int(next(batches)["num_samples"].sum()) for _ in range(_BATCHES.value)]
        spent = time.process_time() - start
    crops = _BATCHES.value * _BATCH_SIZE.value
    return {
        "crop_s": frames / FRAME_RATE,
        "crops_per_s": crops / spent,
        "audio_s_per_s": sum(samples) / FRAME_SAMPLES / FRAME_RATE / spent,
        "mb_per_s": 4e-6 * sum(samples) / spent,
    }


def read_trainer(path: str) -> dict[str, float]:
    """Crops that training takes in a second by size; of several measurements, the fastest."""
    found: dict[str, float] = {}
    lines = Path(path).read_text(encoding="utf-8").splitlines() if path else []
    for row in map(json.loads, lines):
        if row["what"] == "train":
            rate = row["crops"] / row["step_s"]
            found[row["size"]] = max(rate, found.get(row["size"], 0.0))
    return found


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    head = ["size", "crop, s", "root", "crops/s", "audio s/s", "MB/s", "taken/s", "times"]
    keys = ["size", "crop_s", "root", "crops_per_s", "audio_s_per_s", "mb_per_s"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        values = [row.get(key, "-") for key in (*keys, "taken_per_s", "times")]
        lines.append([f"{v:.3g}" if isinstance(v, float) else str(v) for v in values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    app.run(main)
