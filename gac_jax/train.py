"""Train a model: `python -m gac_jax.train --config=configs/tiny.py --workdir=DIR`.

Runs every stage of the configuration, resumes where an earlier run stopped, and writes the
finished model to DIR/model, or to DIR/tokenizer as long as there is no decoder. Any field can be
set on the command line: `--config.data.root=MY_AUDIO --config.generation.steps=1000`.

The same command, started once on each host, trains on all of them; see `gac_jax.distributed` for
where hosts find each other by themselves.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from gac_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, see configs/.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for checkpoints, logs and the model.", required=True
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where hosts do not find each other."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Of the group; 1 is none.", 1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Of this process, from 0.", 0)
flags.mark_flag_as_required("config")


def main() -> None:
    """Trains what the flags ask for."""
    cli.use_compilation_cache()
    from gac_jax import distributed
    from gac_jax.training.stages import TOKENIZER, run
    from gac_jax.training.stop import Interrupted

    place = distributed.Place(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    distributed.join(place)
    try:
        folder = run(_CONFIG.value, Path(_WORKDIR.value))
    except Interrupted as stop:
        if distributed.is_first():
            print(stop, file=sys.stderr)
        sys.exit(128 + stop.number)  # as if the signal had ended it
    if not distributed.is_first():
        return
    then = "tokenize --out=TOKENS" if folder.name == TOKENIZER else "sample"
    print(f"{folder.name}: {folder}\ntry:   python -m gac_jax.{then} --model={folder}")


if __name__ == "__main__":
    cli.run(main)
