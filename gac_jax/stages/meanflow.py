"""Stage 3, meanflow: teach a trained flow decoder to take few, long steps.

A solver takes many small steps because the velocity v at t holds at t alone. What a long step needs
is the mean velocity on the path from t to r (MeanFlow; Geng et al., 2025),

    u(X_t, t, r) = 1 / (r - t)  integral from t to r of v(X_s, s) ds

which this stage teaches a copy of the decoder, as x-prediction like everything it predicts:
X_t + (1 - t) u. The integral is taken in a few steps along the path of the decoder of stage 2, its
guidance included. The paper has a differential identity instead and learns from its own guess; that
asks for forward-mode derivatives, which neither fused attention nor `models.layers.matmul` has.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from gac_jax import flow
from gac_jax.models.flow_decoder import Condition, FlowDecoder
from gac_jax.models.quantizer import masked_mean
from gac_jax.signal.log_spectrum import log_spectrum
from gac_jax.stages.generation import (
    Generation,
    bucket_losses,
    init_decoder,
    lost_frames,
    valid_spectra,
)
from gac_jax.stages.task import Batch, Metrics, Params, Task
from gac_jax.stages.understanding import frames_of, sample_rate_index

GRIDS = tuple(2**i for i in range(5))  # steps of the solver whose intervals are learnt
_KEPT = "condition_net"  # stays as stage 2 left it


@dataclasses.dataclass(frozen=True)
class MeanFlowConfig:
    """Objective of stage 3.

    Attributes:
      rate_weights: probability of each rate of the ladder (0, 1, 2, 4, 8 residual codebooks).
      lose_frames: probability that a crop loses about a fifth of its code frames.
      instants: share of crops that keep the velocity at t, r = t.
      path_steps: steps along the path that an integral is taken in.
      lowest_temperature: of the noise, whose deviation is drawn from here to 1; decoders that are
        sampled below 1 have to know such noise.
      guidance: weights of the guidance to learn, at each number of residual codebooks.
    """

    rate_weights: tuple[float, ...]
    lose_frames: float
    instants: float
    path_steps: int
    lowest_temperature: float
    guidance: tuple[float, ...]


class MeanFlow(Task):
    """A flow decoder that learns from another, whose place it takes."""

    name = "meanflow"

    def __init__(self, config: MeanFlowConfig, generation: Generation) -> None:
        """Takes what stage 2 is made of, its decoder included."""
        self.config, self.generation = config, generation
        self.teacher = generation.decoder
        self.student = FlowDecoder(dataclasses.replace(self.teacher.config, interval=True))

    def init(self, key: jax.Array) -> Params:
        """Parameters {"decoder"} but for its condition network, which stays as it is."""
        width = self.generation.quantizer.config.width
        return {"decoder": trainable(init_decoder(self.student, width, key))}

    def loss(
        self, params: Params, frozen: Params, memory: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Params]]:
        """Squared error of the mean velocity.

        `frozen` holds {"encoder", "quantizer", "decoder", "spectrum"}, the last two of stage 2.
        """
        keys = jax.random.split(key, 6)
        frames = frames_of(batch)
        rate = sample_rate_index(keys[0], self.config.rate_weights, frames.shape[0])
        embedding = self.generation.embed(frozen, batch, frames, rate)
        lost = lost_frames(keys[1], embedding.shape[:2], self.config.lose_frames)
        teacher = {"params": frozen["decoder"]}
        given = (embedding, rate, lost, frames)
        told, level = self._condition(teacher, *given, told=True), log_spectrum(batch["wave"])
        mean, scale = (frozen["spectrum"][name][None, None] for name in ("mean", "scale"))
        x1 = told.standardise((level - mean) / scale)
        lowest = self.config.lowest_temperature
        temperature = jax.random.uniform(keys[2], (len(x1), 1, 1), minval=lowest)
        noise = temperature * jax.random.normal(keys[3], x1.shape)
        t, until = self._intervals(keys[4], len(x1))
        x_t = flow.interpolate(noise, x1, t)
        velocity_fn = self._velocity(teacher, told, *given)
        u = jax.lax.stop_gradient(mean_velocity(velocity_fn, x_t, t, until, self.config.path_steps))
        student = {"params": {**params["decoder"], _KEPT: frozen["decoder"][_KEPT]}}
        x1_hat = self.student.apply(student, x_t, t, told, frames, until)
        x1_target = x_t + (1.0 - t[:, None, None]) * u
        per_frame = jnp.mean(flow.loss_per_element(x1_hat, x1_target, t), axis=-1)
        valid = valid_spectra(level, frames)
        loss = masked_mean(per_frame, valid)
        power = masked_mean(jnp.mean(jnp.square(u), axis=-1), valid)
        spans = bucket_losses(per_frame, valid, until - t, "span")
        return loss, ({"relative": loss / power, **spans}, memory)

    def _condition(
        self,
        teacher: Params,
        embedding: jax.Array,
        rate: jax.Array,
        lost: jax.Array,
        frames: jax.Array,
        told: bool,
    ) -> Condition:
        keep = jnp.full(rate.shape, told)
        return self.teacher.apply(teacher, embedding, rate, keep, lost, frames, method="condition")

    def _velocity(
        self,
        teacher: Params,
        told: Condition,
        embedding: jax.Array,
        rate: jax.Array,
        lost: jax.Array,
        frames: jax.Array,
    ) -> flow.VelocityFn:
        """What the decoder of stage 2 is sampled with: its velocity, guided; t is (B,) here."""

        def velocity(condition: Condition, x: jax.Array, t: jax.Array) -> jax.Array:
            return flow.velocity(self.teacher.apply(teacher, x, t, condition, frames), x, t)

        if set(self.config.guidance) == {1.0}:
            return lambda x, t, until: velocity(told, x, t)
        untold = self._condition(teacher, embedding, rate, lost, frames, told=False)
        weight = jnp.asarray(self.config.guidance)[rate]

        def guided(x: jax.Array, t: jax.Array, until: jax.Array) -> jax.Array:
            with_codes, without = velocity(told, x, t), velocity(untold, x, t)
            factor = jnp.where(flow.guidance_acts(t), weight, 1.0)[:, None, None]
            return without + factor * (with_codes - without)

        return guided

    def _intervals(self, key: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
        """Draws t and r, (B,) each: steps of the solver's own grids, and instants."""
        keys = jax.random.split(key, 4)
        which = jax.random.randint(keys[0], (rows,), 0, len(GRIDS))
        place = jax.random.randint(keys[1], (rows,), 0, 2**which)
        table = jnp.stack([jnp.resize(flow.time_grid(steps), GRIDS[-1] + 1) for steps in GRIDS])
        t, until = table[which, place], table[which, place + 1]
        # An instant may be anywhere in the interval, its end excepted, where X_1 is all there is.
        inside = t + jax.random.uniform(keys[2], (rows,)) * (until - t)
        instant = jax.random.uniform(keys[3], (rows,)) < self.config.instants
        return jnp.where(instant, inside, t), jnp.where(instant, inside, until)


def trainable(decoder: Params) -> Params:
    """What this stage trains of a decoder's parameters."""
    return {name: part for name, part in decoder.items() if name != _KEPT}


def mean_velocity(
    velocity_fn: flow.VelocityFn, x: jax.Array, t: jax.Array, until: jax.Array, steps: int
) -> jax.Array:
    """Mean of the velocities on the path from x, in Euler steps.

    Args:
      velocity_fn: the velocity at times (B,).
      x: (B, T, F) point at t.
      t: (B,) flow time.
      until: (B,) where the path ends; at t, the velocity there is the mean.
      steps: of equal length.

    Returns:
      (B, T, F).
    """
    span = (until - t) / steps

    def step(state: tuple[jax.Array, jax.Array], i: jax.Array) -> tuple[tuple, None]:
        x, total = state
        now = t + i * span
        slope = velocity_fn(x, now, now)
        return (x + span[:, None, None] * slope, total + slope), None

    start = (x, jnp.zeros_like(x))
    (_, total), _ = jax.lax.scan(step, start, jnp.arange(steps, dtype=jnp.float32))
    return total / steps
