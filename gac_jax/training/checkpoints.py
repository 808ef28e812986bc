"""Saving and restoring a training run with orbax.

A checkpoint holds the whole `TrainState` and the config. The data stream needs no entry of its
own: its position is the step (see `gac_jax.data.pipeline`), on any number of processes.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy, save_decision_policy

from gac_jax.errors import UserError
from gac_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one stage, newest last; use as a context manager."""

    def __init__(self, folder: str, every: int, keep: int) -> None:
        """Opens or creates `folder`.

        Args:
          folder: where checkpoints live.
          every: steps between checkpoints.
          keep: how many of the newest to keep.
        """
        options = ocp.CheckpointManagerOptions(
            save_decision_policy=save_decision_policy.FixedIntervalPolicy(every),
            preservation_policy=preservation_policy.LatestN(keep),
        )
        self._manager = ocp.CheckpointManager(os.path.abspath(folder), options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, config: dict[str, Any], force: bool) -> None:
        """Saves in the background if `every` says so, or in any case if `force` is set."""
        if step in (0, self.latest_step):
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(config)
        )
        self._manager.save(step, args=items, force=force)

    def restore(self, like: TrainState) -> TrainState:
        """The newest state, laid out as `like` (ShapeDtypeStructs with shardings).

        Raises:
          UserError: the checkpoint was made by another configuration.
        """
        step = self.latest_step
        try:
            items = ocp.args.Composite(state=ocp.args.StandardRestore(like))
            state = self._manager.restore(step, args=items)["state"]
        except (ValueError, KeyError) as error:
            raise UserError(
                f"checkpoint {step} in {self._manager.directory} does not fit this config; "
                f"use another --workdir ({str(error).splitlines()[0]})"
            ) from error
        jax.tree.map(_check_dtype, state, like)
        return state


def _check_dtype(found: jax.Array, expected: jax.ShapeDtypeStruct) -> None:
    """Orbax casts silently; a resumed run would no longer be the same run."""
    if found.dtype != expected.dtype:
        raise UserError(f"checkpoint holds {found.dtype} where the config makes {expected.dtype}")
