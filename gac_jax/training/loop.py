"""One training loop for every stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gac_jax.sharding import BATCH, shard_batch, shardings
from gac_jax.stages.task import Batch, Metrics, Params, Task
from gac_jax.training.checkpoints import Checkpoints
from gac_jax.training.log import Log, numbered
from gac_jax.training.optimizer import OptimizerConfig, make_optimizer
from gac_jax.training.state import TrainState, init_state, make_train_step
from gac_jax.training.stop import Interrupted, StopSignal

NumpyBatch = dict[str, np.ndarray]
StepFn = Callable[[TrainState, Params, Batch], tuple[TrainState, Metrics]]


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

    def __post_init__(self) -> None:
        """Refuses lengths and intervals below 1."""
        for name in ("steps", "log_every", "eval_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class StageRun:
    """All that one stage needs to train.

    Attributes:
      task: the stage.
      loop: lengths and intervals.
      optimizer: optimiser settings.
      config: the whole configuration, saved with every checkpoint.
      folder: where the stage keeps checkpoints and logs.
      mesh: devices.
      frozen: parameters that the stage uses but does not train.
      start: parameters to start from instead of fresh ones; {} for none.
      data: what there is to train on, in words.
      train_batches: first step -> endless iterator of this process's batches, with close().
      validation_batches: () -> the same finite batches at every call.
      names: (clip, of a batch) -> what to call these clips in messages.
    """

    task: Task
    loop: LoopConfig
    optimizer: OptimizerConfig
    config: dict[str, Any]
    folder: str
    mesh: Mesh
    frozen: Params
    start: Params
    data: str
    train_batches: Callable[[int], Any]
    validation_batches: Callable[[], Iterable[NumpyBatch]]
    names: Callable[[np.ndarray], list[str]] = numbered


def run_stage(run: StageRun) -> TrainState:
    """Trains one stage to its last step, resuming from its folder where it can.

    Raises:
      UserError: too many updates in a row were not finite, a checkpoint of another config, or no
        room for a new one.
      Interrupted: stopped by a signal, after saving.
    """
    loop, task = run.loop, run.task
    optimizer = make_optimizer(run.optimizer, loop.steps)

    def init(start: Params) -> TrainState:
        state = init_state(task, optimizer, loop.seed, start)
        # A weakly typed leaf comes back strongly typed, and the step would be compiled twice.
        return jax.tree.map(lambda x: x.astype(x.dtype), state)

    shapes = jax.eval_shape(init, run.start)
    layout, frozen_layout = shardings(run.mesh, shapes), shardings(run.mesh, run.frozen)
    frozen = jax.device_put(run.frozen, frozen_layout)
    # The layout of the state is pinned on both sides, or it drifts and the step recompiles.
    step_fn = jax.jit(
        make_train_step(task, optimizer, loop.seed, loop.ema_decay),
        in_shardings=(layout, frozen_layout, NamedSharding(run.mesh, BATCH)),
        out_shardings=(layout, NamedSharding(run.mesh, P())),
        donate_argnums=0,
    )
    with Checkpoints(run.folder, loop.save_every, loop.keep) as store:
        _announce(run, shapes.params, store.latest_step or 0)
        if store.latest_step is None:
            state = jax.jit(init, out_shardings=layout)(run.start)
        else:
            state = store.restore(jax.tree.map(_with_sharding, shapes, layout))
        return _train(run, state, frozen, step_fn, store)


def _train(
    run: StageRun, state: TrainState, frozen: Params, step_fn: StepFn, store: Checkpoints
) -> TrainState:
    """Evaluates, saves, takes the next batch, steps.

    In this order, the data stream never runs ahead of a saved state.
    """
    loop, first = run.loop, int(state.step)
    if first >= loop.steps:
        return state
    validate = _validation(run, frozen)
    log = Log(run.folder, run.task.name, loop, first, run.names)
    with StopSignal(run.mesh) as stop, log, closing(run.train_batches(first)) as batches:
        for step in range(first, loop.steps + 1):
            stopping, is_last = stop.agreed(), step == loop.steps
            if stopping or is_last:
                log.flush()
            if is_last or (step > first and step % loop.eval_every == 0):
                log.write(step, "validation", validate(state))
            store.save(step, state, run.config, force=is_last or stopping > 0)
            if stopping:
                text = f"{run.task.name}: stopped at step {step}; run again to go on"
                raise Interrupted(text, stopping)
            if not is_last:
                batch = next(batches)
                state, metrics = step_fn(state, frozen, shard_batch(run.mesh, batch))
                log.step(step + 1, metrics, batch.get("clip"))
    return state


def _announce(run: StageRun, params: Params, step: int) -> None:
    """One line on what starts: size, data, devices, step."""
    if jax.process_index():
        return
    millions = sum(x.size for x in jax.tree.leaves(params)) / 1e6
    kind, count = run.mesh.devices.flat[0].device_kind, run.mesh.size
    axes = ", ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    verb = "finished" if step >= run.loop.steps else "resumes" if step else "starts"
    print(
        f"{run.task.name}: {millions:.2f} M parameters to train; {run.data}; "
        f"{count} {kind} device{'s' if count > 1 else ''} ({axes}); "
        f"{verb} at step {step} of {run.loop.steps}",
        flush=True,
    )


def _validation(run: StageRun, frozen: Params) -> Callable[[TrainState], dict[str, float]]:
    """validate(state) -> metrics of the averaged weights on held-out batches, same noise always."""

    def measure(state: TrainState, frozen: Params, batch: Batch, index: jax.Array) -> Metrics:
        key = jax.random.fold_in(jax.random.key(run.loop.seed + 1), index)
        return run.task.evaluate(state.ema, frozen, state.memory, batch, key)

    compiled = jax.jit(measure)

    def rows(state: TrainState) -> Iterator[dict[str, np.ndarray]]:
        for index, batch in enumerate(run.validation_batches()):
            yield jax.device_get(
                compiled(state, frozen, shard_batch(run.mesh, batch), np.int32(index))
            )

    def validate(state: TrainState) -> dict[str, float]:
        table = list(rows(state))
        return {k: _mean([row[k] for row in table]) for k in table[0]} if table else {}

    return validate


def _mean(values: list[np.ndarray]) -> float:
    """Mean of the values that are numbers: a batch may hold nothing of some kind."""
    numbers = [float(v) for v in values if not np.isnan(v)]
    return sum(numbers) / len(numbers) if numbers else float("nan")


def _with_sharding(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
