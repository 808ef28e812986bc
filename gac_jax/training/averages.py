"""The averaged weights in a stage's newest checkpoint, without the rest of its state."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from gac_jax.errors import UserError
from gac_jax.stages.task import Params
from gac_jax.training.checkpoints import FOLDER, latest_step
from gac_jax.training.optimizer import path_name


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
            _check(place, manager.item_metadata(step)["state"].tree, wanted)
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


def _check(place: str, stored: Params, wanted: Params) -> None:
    """Compares before anything is read: orbax casts silently, and tells of shapes at length."""
    found = _table(stored)
    for name, kind in _table(wanted).items():
        if found.get(name) != kind:
            raise UserError(
                f"{place}: made by another config: {name} is {found.get(name, 'missing')}, should "
                f"be {kind}; use the config it was made by"
            )


def _table(tree: Params) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): f"{leaf.dtype} {tuple(leaf.shape)}" for path, leaf in leaves}
