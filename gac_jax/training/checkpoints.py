"""Saving and restoring a training run with orbax.

A checkpoint holds the whole `TrainState` and, for the reader, the config. The data stream needs no
entry of its own: its position is the step (see `gac_jax.data.pipeline`), on any number of
processes. A checkpoint that is being written has a name of its own until it is whole.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy, save_decision_policy

from gac_jax.errors import UserError
from gac_jax.training.optimizer import path_name
from gac_jax.training.state import TrainState

FOLDER = "checkpoints"  # within the folder of a stage
DRAFT = ".orbax-checkpoint-tmp"  # how orbax ends the name of a checkpoint that is not whole


class Checkpoints:
    """The checkpoints of one stage, newest last; use as a context manager."""

    def __init__(self, stage_folder: str, every: int, keep: int) -> None:
        """Opens or creates the folder of checkpoints.

        Args:
          stage_folder: what belongs to the stage.
          every: steps between checkpoints.
          keep: how many of the newest to keep.

        Raises:
          UserError: the folder cannot be written.
        """
        options = ocp.CheckpointManagerOptions(
            save_decision_policy=save_decision_policy.FixedIntervalPolicy(every),
            preservation_policy=preservation_policy.LatestN(keep),
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
        self._folder = os.path.abspath(os.path.join(stage_folder, FOLDER))
        if jax.process_index() == 0:
            _remove_drafts(self._folder)
        with self._writing():
            self._manager = ocp.CheckpointManager(
                self._folder, options=options, item_handlers=handlers
            )

    def __enter__(self) -> Checkpoints:
        # What orbax raises, each of its threads tells before, with stack traces.
        logging.getLogger("absl").addFilter(_is_not_of_orbax)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with self._writing():
                self._manager.close()  # waits for what is being written
        finally:
            logging.getLogger("absl").removeFilter(_is_not_of_orbax)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, config: dict[str, Any], force: bool) -> None:
        """Saves in the background if `every` says so, or in any case if `force` is set.

        Raises:
          UserError: this checkpoint, or the one before, cannot be written.
        """
        if step in (0, self.latest_step):
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(config)
        )
        with self._writing():
            self._manager.check_for_errors()  # of the one before, long before the next is due
            self._manager.save(step, args=items, force=force)

    def restore(self, like: TrainState) -> TrainState:
        """The newest state, laid out as `like` (ShapeDtypeStructs with shardings).

        Raises:
          UserError: the checkpoint was made by another configuration, or is damaged.
        """
        step = self.latest_step
        place = os.path.join(self._manager.directory, str(step))
        try:
            check_arrays(place, self._manager.item_metadata(step)["state"].tree, like)
            items = ocp.args.Composite(state=ocp.args.StandardRestore(like))
            return self._manager.restore(step, args=items)["state"]
        except UserError:
            raise
        except Exception as error:  # orbax has no narrower one for an array that is cut short
            raise UserError(
                f"{place}: damaged checkpoint; remove it to go on from the one before "
                f"({type(error).__name__}: {' '.join(str(error).split())[:100]})"
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what the system says against writing into one line."""
        try:
            yield
        except Exception as error:  # tensorstore raises a ValueError for a full disk
            reason = _refusal(error)
            if reason is None:
                raise
            raise UserError(
                f"{self._folder}: a checkpoint cannot be written ({reason}); see to that, then run "
                "again to go on from the one before"
            ) from error


def _remove_drafts(folder: str) -> None:
    """Frees the room of what killed runs left half written.

    Orbax offers it, but does it in a thread that the first save may run into.
    """
    for draft in Path(folder).glob(f"*{DRAFT}"):
        shutil.rmtree(draft, ignore_errors=True)


def latest_step(stage_folder: str) -> int | None:
    """Step of the newest complete checkpoint of a stage, whose folder need not exist."""
    return max(ocp.utils.checkpoint_steps(os.path.join(stage_folder, FOLDER)), default=None)


def check_arrays(place: str, stored: Any, wanted: Any, only_wanted: bool = False) -> None:
    """Compares before anything is read: orbax casts silently, and tells of shapes at length.

    Args:
      place: names the checkpoint in messages.
      stored: what it holds, as orbax describes it.
      wanted: tree of ShapeDtypeStructs.
      only_wanted: whether it may hold more.

    Raises:
      UserError: an array is missing, left over, or of another shape or dtype.
    """
    found, asked = _table(stored), _table(wanted)
    for name in sorted(asked if only_wanted else found.keys() | asked.keys()):
        if found.get(name) != asked.get(name):
            raise UserError(
                f"{place}: made by another config: {name} is {found.get(name, 'missing')}, should "
                f"be {asked.get(name, 'absent')}; use the config it was made by or another workdir"
            )


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _refusal(error: BaseException) -> str | None:
    """What the operating system said, if an error is about that."""
    if isinstance(error, OSError):
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else None


def _table(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): f"{leaf.dtype} {tuple(leaf.shape)}" for path, leaf in leaves}
