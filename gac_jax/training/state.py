"""The training state and the one step that advances it."""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from gac_jax.stages.task import Batch, Metrics, Params, Task


@flax.struct.dataclass
class TrainState:
    """Everything that changes while a stage trains; saved and restored as a whole.

    Attributes:
      step: () int32, updates attempted; also keys the step's randomness.
      params: trainable parameters, float32.
      ema: exponential moving average of params, which is what gets evaluated and shipped.
      opt_state: optimiser state.
      memory: the task's running statistics.
      skipped: () int32, updates left out in a row because loss or gradients were not finite.
    """

    step: jax.Array
    params: Params
    ema: Params
    opt_state: optax.OptState
    memory: Params
    skipped: jax.Array


def init_state(
    task: Task, optimizer: optax.GradientTransformation, seed: int, start: Params
) -> TrainState:
    """State at step 0: parameters from `start` where it has them, fresh ones elsewhere."""
    params = _merge(task.init(jax.random.key(seed)), start)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=params,
        opt_state=optimizer.init(params),
        memory=task.init_memory(params),
        skipped=jnp.zeros((), jnp.int32),
    )


def make_train_step(
    task: Task, optimizer: optax.GradientTransformation, seed: int, ema_decay: float
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, Metrics]]:
    """Builds step(state, frozen, batch) -> (state, metrics), a pure function to be jitted.

    A step whose loss or gradients are not finite changes nothing but the counters.
    """

    def step(state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, (metrics, memory)), gradients = jax.value_and_grad(task.loss, has_aux=True)(
            state.params, frozen, state.memory, batch, key
        )
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = task.refresh(optax.apply_updates(state.params, updates), memory)
        count = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1.0 + count) / (10.0 + count))
        ema = jax.tree.map(lambda a, b: decay * a + (1.0 - decay) * b, state.ema, params)
        # What follows the memory is an average already; averaged again it would lag behind.
        ema = task.refresh(ema, memory)
        new = (params, ema, opt_state, memory)
        old = (state.params, state.ema, state.opt_state, state.memory)
        params, ema, opt_state, memory = jax.tree.map(
            lambda a, b: jnp.where(finite, a, b), new, old
        )
        skipped = jnp.where(finite, 0, state.skipped + 1)
        metrics = {"loss": loss, "gradient_norm": norm, "skipped": skipped, **metrics}
        return TrainState(state.step + 1, params, ema, opt_state, memory, skipped), metrics

    return step


def _merge(params: Params, start: Params) -> Params:
    """Replaces the leaves of `params` that `start` has too; what else it has is an error."""
    flat, given = flatten_dict(params), flatten_dict(start)
    for path, value in given.items():
        if path not in flat or flat[path].shape != value.shape:
            raise ValueError(f"pretrained {'/'.join(path)} {value.shape} has no place in the model")
    return unflatten_dict({**flat, **given})
