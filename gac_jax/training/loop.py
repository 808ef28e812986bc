"""One training loop for every stage."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tensorboardX import SummaryWriter
from tqdm import tqdm

from gac_jax.errors import UserError
from gac_jax.sharding import BATCH, shard_batch, shardings
from gac_jax.stages.task import Metrics, Params, Task
from gac_jax.training.checkpoints import Checkpoints
from gac_jax.training.optimizer import OptimizerConfig, make_optimizer
from gac_jax.training.state import TrainState, init_state, make_train_step

NumpyBatches = Iterator[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long and how often.

    Attributes:
      steps: updates in the stage.
      seed: of initialisation and of every step's randomness.
      ema_decay: of the shipped weights.
      log_every: steps between log lines.
      eval_every: steps between validations.
      save_every: steps between checkpoints.
      keep: checkpoints kept.
      max_skipped: updates in a row that may be left out for not being finite.
    """

    steps: int
    seed: int
    ema_decay: float
    log_every: int
    eval_every: int
    save_every: int
    keep: int
    max_skipped: int


class Interrupted(Exception):
    """SIGTERM or Ctrl-C arrived; the state has been saved."""


def run_stage(
    task: Task,
    loop: LoopConfig,
    optimizer_config: OptimizerConfig,
    config: dict[str, Any],
    folder: str,
    mesh: Mesh,
    frozen: Params,
    start: Params,
    train_batches: Any,
    validation_batches: Any,
) -> TrainState:
    """Trains one stage to its last step, resuming from `folder` where it can.

    Args:
      task: the stage.
      loop: lengths and intervals.
      optimizer_config: optimiser of the stage.
      config: the whole configuration, saved with every checkpoint.
      folder: where the stage keeps checkpoints and logs.
      mesh: devices.
      frozen: parameters the stage uses but does not train.
      start: parameters to start from instead of fresh ones; {} for none.
      train_batches: function of the first step -> iterator of numpy batches.
      validation_batches: function -> finite iterator of numpy batches, the same at every call.

    Raises:
      UserError: non-finite updates in a row, or a checkpoint of another config.
      Interrupted: stopped by a signal, after saving.
    """
    optimizer = make_optimizer(optimizer_config, loop.steps)

    def init(start: Params) -> TrainState:
        return init_state(task, optimizer, loop.seed, start)

    layout = shardings(mesh, jax.eval_shape(init, start))
    replicated, rows = NamedSharding(mesh, P()), NamedSharding(mesh, BATCH)
    frozen_layout = shardings(mesh, frozen)
    frozen = jax.device_put(frozen, frozen_layout)
    step_fn = jax.jit(
        make_train_step(task, optimizer, loop.seed, loop.ema_decay),
        in_shardings=(layout, frozen_layout, rows),
        out_shardings=(layout, replicated),
        donate_argnums=0,
    )
    validate = _make_validate(task, loop.seed, mesh, frozen, validation_batches)
    with Checkpoints(os.path.join(folder, "checkpoints"), loop.save_every, loop.keep) as store:
        if store.latest_step is None:
            state = jax.jit(init, out_shardings=layout)(start)
        else:
            logging.info("%s: resuming at step %d", task.name, store.latest_step)
            like = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                jax.eval_shape(init, start),
                layout,
            )
            state = store.restore(like)
        return _run(task, loop, config, folder, mesh, state, frozen, step_fn, validate, store, train_batches)


def _run(task, loop, config, folder, mesh, state, frozen, step_fn, validate, store, train_batches):  # type: ignore
    """Order matters: evaluate, save, next batch, step; the data stream never runs ahead."""
    stop = _StopSignal()
    step = int(state.step)
    batches = train_batches(step)
    progress = tqdm(total=loop.steps, initial=step, desc=task.name, unit="step", mininterval=1.0)
    log = _Log(folder, loop, progress)
    try:
        while step < loop.steps:
            if step and step % loop.eval_every == 0:
                log.write(step, "validation", validate(state))
            store.save(step, state, config, force=stop.requested)
            if stop.requested:
                raise Interrupted(f"stopped at step {step} of {task.name}; run again to continue")
            batch = shard_batch(mesh, next(batches))
            state, metrics = step_fn(state, frozen, batch)
            step += 1
            progress.update()
            log.train(step, metrics)
        log.flush()
        log.write(step, "validation", validate(state))
        store.save(step, state, config, force=True)
        return state
    finally:
        stop.restore()
        batches.close()
        progress.close()
        log.close()


def _make_validate(task: Task, seed: int, mesh: Mesh, frozen: Params, batches: Any) -> Any:
    """validate(state) -> metrics of the EMA weights on the held-out batches, same noise each time."""

    def metrics(state: TrainState, frozen: Params, batch: Params, index: jax.Array) -> Metrics:
        key = jax.random.fold_in(jax.random.key(seed + 1), index)
        loss, (values, _) = task.loss(state.ema, frozen, state.memory, batch, key)
        return {"loss": loss, **values}

    compiled = jax.jit(metrics)

    def validate(state: TrainState) -> dict[str, float]:
        rows = [
            jax.device_get(compiled(state, frozen, shard_batch(mesh, batch), np.int32(i)))
            for i, batch in enumerate(batches())
        ]
        return {k: float(np.nanmean([row[k] for row in rows])) for k in rows[0]} if rows else {}

    return validate


class _StopSignal:
    """Turns SIGTERM and SIGINT into a flag that the loop reads between steps."""

    def __init__(self) -> None:
        self.requested = False
        self._old = {s: signal.signal(s, self._request) for s in (signal.SIGTERM, signal.SIGINT)}

    def _request(self, *_: object) -> None:
        self.requested = True

    def restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


class _Log:
    """Metrics to terminal and TensorBoard, read one step late so that devices never wait."""

    def __init__(self, folder: str, loop: LoopConfig, progress: tqdm) -> None:
        self._loop, self._progress = loop, progress
        self._writer = SummaryWriter(os.path.join(folder, "logs")) if _is_first() else None
        self._pending: tuple[int, Metrics] | None = None
        self._clock, self._clock_step = time.perf_counter(), None

    def train(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a dispatched step and reads those of the step before."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Reads the pending metrics, checks them and logs them when due."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        if int(metrics["skipped"]) > self._loop.max_skipped:
            raise UserError(
                f"{self._loop.max_skipped + 1} updates in a row were not finite, the last at step "
                f"{step}; lower the learning rate or look at the data"
            )
        if step % self._loop.log_every == 0:
            values = {k: float(v) for k, v in jax.device_get(metrics).items()}
            self.write(step, "train", {**values, "seconds_per_step": self._seconds(step)})

    def write(self, step: int, group: str, values: dict[str, float]) -> None:
        """One log line and one TensorBoard point for each finite value."""
        if self._writer is None or not values:
            return
        shown = {k: v for k, v in values.items() if np.isfinite(v)}
        for name, value in shown.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)
        text = "  ".join(f"{k} {v:.4g}" for k, v in shown.items())
        self._progress.write(f"{group} step {step}: {text}")

    def _seconds(self, step: int) -> float:
        now, since = time.perf_counter(), self._clock_step
        elapsed = (now - self._clock) / (step - since) if since is not None else float("nan")
        self._clock, self._clock_step = now, step
        return elapsed

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _is_first() -> bool:
    return jax.process_index() == 0
