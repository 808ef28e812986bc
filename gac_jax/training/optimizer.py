"""AdamW with warm-up, cosine decay, clipping and per-part learning rates."""

from __future__ import annotations

import dataclasses
import re

import jax
import optax

from gac_jax.stages.task import Params


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser of one stage.

    Attributes:
      learning_rate: peak learning rate.
      warmup_steps: linear warm-up.
      final_fraction: learning rate at the last step, relative to the peak.
      b2: decay of the second moment.
      weight_decay: decoupled decay of matrices (not of biases, norms, codebooks).
      clip_norm: global gradient norm above which gradients are scaled down.
      scales: (path regex, factor) pairs; the first match multiplies a parameter's updates.
    """

    learning_rate: float
    warmup_steps: int
    final_fraction: float
    b2: float
    weight_decay: float
    clip_norm: float
    scales: tuple[tuple[str, float], ...] = ()


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Builds the optimiser for a run of `steps` updates."""
    warmup = min(config.warmup_steps, max(steps // 4, 1))
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=config.learning_rate * config.final_fraction,
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, b2=config.b2, weight_decay=config.weight_decay, mask=decayed),
        optax.stateless(lambda updates, _: _scale(updates, config.scales)),
    )


def decayed(params: Params) -> Params:
    """True for the kernels of dense layers and convolutions."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path_name(path).endswith("kernel"), params
    )


def path_name(path: tuple) -> str:
    """'encoder/semantic/conv1/kernel' for a key path of any mixture of containers."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _scale(updates: Params, scales: tuple[tuple[str, float], ...]) -> Params:
    def scale(path: tuple, update: jax.Array) -> jax.Array:
        factors = (f for pattern, f in scales if re.search(pattern, path_name(path)))
        return update * next(factors, 1.0)

    return jax.tree_util.tree_map_with_path(scale, updates)
