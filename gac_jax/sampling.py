"""The settings with which tokens become audio, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gac_jax.errors import UserError
from gac_jax.flow import SOLVERS


class Sampling(NamedTuple):
    """How tokens become audio.

    Attributes:
      steps: solver steps; Heun evaluates the network twice a step.
      solver: 'euler', 'heun' or 'meanflow'.
      guidance: weights of classifier-free guidance at each number of residual codebooks; 1 is none.
      temperature: deviation of the noise; 1 samples what the model has learnt, 0 keeps to the mean.
      contrast: of spectra above 4 kHz, see `gac_jax.signal.contrast`; how much of it a model lacks
        is known from measurement, and it is not for users to choose.
      seed: of the noise, 0 .. 2^32 - 1.
    """

    steps: int
    solver: str
    guidance: tuple[float, ...]
    temperature: float
    contrast: float
    seed: int


def choose(
    default: Mapping[str, Any],
    num_codebooks: int,
    interval: bool,
    seed: int,
    steps: int | None,
    solver: str | None,
    guidance: float | None,
    temperature: float | None,
) -> Sampling:
    """What is asked for, and the model's defaults where nothing is.

    Args:
      default: "sampling" of the model's config.json.
      num_codebooks: of the model.
      interval: whether its decoder knows mean velocities, see `DecoderConfig`.
      seed: see `Sampling`, as for the rest; None takes the default.
      steps: see seed.
      solver: see seed.
      guidance: see seed; one weight for all rates.
      temperature: see seed.

    Raises:
      UserError: out of range, or nothing for this model.
    """
    weight = default["guidance"] if guidance is None else guidance  # one, or one for each rate
    sampling = Sampling(
        steps=default["steps"] if steps is None else steps,
        solver=default["solver"] if solver is None else solver,
        guidance=tuple(np.broadcast_to(weight, num_codebooks).tolist()),
        temperature=default["temperature"] if temperature is None else temperature,
        contrast=default.get("contrast", 1.0),  # models from before have none
        seed=seed,
    )
    if not 1 <= sampling.steps <= 1000:
        raise UserError(f"steps must be 1 .. 1000, not {sampling.steps}")
    if sampling.solver not in SOLVERS:
        raise UserError(f"solver must be {', '.join(SOLVERS)}, not {sampling.solver!r}")
    if not all(0.0 <= weight <= 20.0 for weight in sampling.guidance):
        raise UserError(f"guidance must be 0 .. 20, not {weight}")
    if not 0.0 <= sampling.temperature <= 2.0:
        raise UserError(f"temperature must be 0 .. 2, not {sampling.temperature}")
    if not 0.0 <= sampling.contrast <= 10.0:
        raise UserError(f"contrast must be 0 .. 10, not {sampling.contrast}")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be 0 .. 2^32 - 1, not {seed}")
    if sampling.solver == "meanflow" and not interval:
        raise UserError("this model has not been trained for solver 'meanflow'; use 'euler'")
    if interval and set(sampling.guidance) != {1.0}:
        raise UserError("guidance is part of what this model has learnt: leave it at 1")
    return sampling
