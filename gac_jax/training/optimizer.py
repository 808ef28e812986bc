"""AdamW or Muon with warm-up, cosine decay, clipping and per-part learning rates."""

from __future__ import annotations

import dataclasses
import re
from functools import partial

import jax
import optax

from gac_jax.stages.task import Params

OPTIMIZERS = ("adamw", "muon")
ADAM_RMS = 0.2  # of Adam's updates in practice: at that size Muon takes the same learning rate


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser of one stage.

    Attributes:
      name: "adamw", or "muon" for the matrices of layers and AdamW, with Nesterov's momentum, for
        the rest.
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
    name: str = "adamw"

    def __post_init__(self) -> None:
        """Refuses an unknown name."""
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer.name must be {' or '.join(OPTIMIZERS)}, not {self.name!r}")


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
        _inner(config, schedule),
        optax.stateless(lambda updates, _: _scale(updates, config.scales)),
    )


def _inner(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW, or Muon (Jordan et al., 2024; scaled as by Liu et al., 2025)."""
    settings = {"weight_decay": config.weight_decay}
    if config.name == "adamw":
        return optax.adamw(schedule, b2=config.b2, mask=decayed, **settings)
    return optax.contrib.muon(
        schedule,
        consistent_rms=ADAM_RMS,
        adam_b2=config.b2,
        weight_decay_mask=decayed,
        muon_weight_dimension_numbers=partial(_matrices, scales=config.scales),
        **settings,
    )


def _matrices(params: Params, scales: tuple[tuple[str, float], ...]) -> Params:
    """Where Muon acts: the matrices of dense layers that move, also stacked; not convolutions."""

    def axes(path: tuple, x: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        name = path_name(path)
        is_matrix = name.endswith("kernel") and not re.search(r"conv|depthwise", name)
        if not is_matrix or not _factor(name, scales):
            return None
        return optax.contrib.MuonDimensionNumbers(x.ndim - 2, x.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


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
        return update * _factor(path_name(path), scales)

    return jax.tree_util.tree_map_with_path(scale, updates)


def _factor(name: str, scales: tuple[tuple[str, float], ...]) -> float:
    return next((factor for pattern, factor in scales if re.search(pattern, name)), 1.0)
