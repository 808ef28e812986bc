"""The averaged weights in a stage's newest checkpoint, without the rest of its state."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import orbax.checkpoint as ocp

from gac_jax.errors import UserError
from gac_jax.stages.task import Params
from gac_jax.training.checkpoints import FOLDER, check_arrays, latest_step


class Averages(NamedTuple):
    """What was read.

    Attributes:
      step: of the checkpoint.
      params: averaged weights.
      config: of the run that made them.
    """

    step: int
    params: Params
    config: dict[str, Any]


def load_averages(stage_folder: str, like: Params) -> Averages:
    """Reads averaged weights; writes nothing, so that a run which goes on is not disturbed.

    Args:
      stage_folder: what belongs to the stage.
      like: ShapeDtypeStructs with shardings. What it leaves out is not read.

    Returns:
      The newest averages, laid out as `like`.

    Raises:
      UserError: there is no checkpoint, it was made by another configuration, or it is damaged.
    """
    step = latest_step(stage_folder)
    if step is None:
        raise UserError(f"{stage_folder}: no checkpoint here; name the workdir of a training run")
    folder = os.path.abspath(os.path.join(stage_folder, FOLDER))
    place, wanted = os.path.join(folder, str(step)), {"ema": like}
    # What the option read_only adds to this are warnings.
    options = ocp.CheckpointManagerOptions(create=False)
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
    try:
        with ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager:
            stored = manager.item_metadata(step)["state"].tree
            check_arrays(place, stored, wanted, only_wanted=True)
            how = ocp.checkpoint_utils.construct_restore_args(wanted)
            items = ocp.args.Composite(
                state=ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=True),
                config=ocp.args.JsonRestore(),
            )
            found = manager.restore(step, args=items)
            return Averages(step, found["state"]["ema"], found["config"])
    except UserError:
        raise
    except Exception as error:  # orbax has no narrower one for an array that is cut short
        raise UserError(
            f"{place}: damaged checkpoint, or one that a run has just removed; try again "
            f"({type(error).__name__}: {' '.join(str(error).split())[:100]})"
        ) from error
