"""Stage 4, adversarial: what a decoder of few steps makes must pass for audio.

Squared errors of velocities say how far a path is off, not what is heard: of a voice whose pitch
is in doubt they make hoarse spectra, and vowels that are nearly right cost words. This stage
samples as a receiver does, solver, steps and temperature included, and trains the decoder through
all of it:

    L = adversarial * (C(X') - 1)^2 + matching * mean_l |C_l(X) - C_l(X')| / |C_l(X)|
        + hearing * |H(X) - H(X')|^2 / var H(X) + acoustic * |A(X) - A(X')|

X is the spectrum of the audio, X' the decoder's; C a critic that learns at the same time to tell
1 from 0, by least squares (Mao et al., 2017), with outputs C_l of its layers (Larsen et al., 2016;
in vocoders Kumar et al., 2019); H the semantic tower of the codec's own encoder, Whisper's where
that was the start; A the cepstrum of the spectra of each code frame, and the ripples in it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from gac_jax import flow
from gac_jax.models.critic import Critic, CriticConfig
from gac_jax.models.encoder import WhisperEncoder
from gac_jax.models.flow_decoder import HALVES, FlowDecoder
from gac_jax.models.quantizer import masked_mean
from gac_jax.rates import SPECTRA_PER_FRAME
from gac_jax.signal.cepstrum import cepstrum, ripples
from gac_jax.signal.log_spectrum import BANDS, log_spectrum, partials
from gac_jax.signal.mel import whisper_log_mel_of
from gac_jax.stages.generation import Generation, init_decoder, lost_frames, valid_spectra
from gac_jax.stages.task import Batch, Metrics, Params, Task
from gac_jax.stages.understanding import frames_of, sample_rate_index

TERMS = ("adversarial", "matching", "hearing", "acoustic")
COEFFICIENTS = 64  # of cepstrum and ripples each


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
    """Objective of stage 4.

    Attributes:
      rate_weights: probability of each rate of the ladder (0, 1, 2, 4, 8 residual codebooks).
      lose_frames: probability that a crop loses about a fifth of its code frames.
      weights: (term, weight) of `TERMS`.
      steps: of the solver meanflow.
      temperature: of the noise.
      critic_widths: channels of the critic's convolutions.
    """

    rate_weights: tuple[float, ...]
    lose_frames: float
    weights: tuple[tuple[str, float], ...]
    steps: int
    temperature: float
    critic_widths: tuple[int, ...]


class Adversarial(Task):
    """A decoder of few steps and its critic."""

    name = "adversarial"

    def __init__(self, config: AdversarialConfig, generation: Generation) -> None:
        """Takes what stage 2 is made of; its decoder has been through meanflow.

        Raises:
          ValueError: an unknown term.
        """
        unknown = {name for name, _ in config.weights} - set(TERMS)
        if unknown:
            raise ValueError(f"unknown loss terms {sorted(unknown)}; known are {TERMS}")
        self.config, self.generation = config, generation
        decoder = dataclasses.replace(generation.decoder.config, interval=True)
        self.decoder = FlowDecoder(decoder)
        self.critic = Critic(CriticConfig(config.critic_widths, decoder.dtype))
        self.tower = WhisperEncoder(generation.features.config)

    def init(self, key: jax.Array) -> Params:
        """Parameters {"decoder", "critic"}."""
        keys = jax.random.split(key)
        width = self.generation.quantizer.config.width
        blank = jnp.zeros((1, 2 ** len(self.critic.config.widths), self.decoder.config.bins))
        return {
            "decoder": init_decoder(self.decoder, width, keys[0]),
            "critic": self.critic.init(keys[1], blank, blank)["params"],
        }

    def loss(
        self, params: Params, frozen: Params, memory: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Params]]:
        """The decoder's loss and the critic's; neither has gradients for the other.

        `frozen` holds {"encoder", "quantizer", "spectrum"}.
        """
        keys = jax.random.split(key, 3)
        frames = frames_of(batch)
        rate = sample_rate_index(keys[0], self.config.rate_weights, frames.shape[0])
        embedding = self.generation.embed(frozen, batch, frames, rate)
        lost = lost_frames(keys[1], embedding.shape[:2], self.config.lose_frames)
        level = log_spectrum(batch["wave"])
        mean, scale = (frozen["spectrum"][name][None, None] for name in ("mean", "scale"))
        made, expected = self._sample(params["decoder"], embedding, rate, lost, frames, keys[2])
        valid = valid_spectra(level, frames)
        real, made, expected = (
            jnp.where(valid[:, :, None], x, 0.0) for x in ((level - mean) / scale, made, expected)
        )
        expected = jax.lax.stop_gradient(expected)
        terms, critic_loss = self._judge(params["critic"], real, made, expected)
        terms["acoustic"] = jnp.mean(jnp.abs(_acoustics(real) - _acoustics(made)))
        right, heard = (self._hear(frozen, x * scale + mean, frames) for x in (real, made))
        terms["hearing"] = _unexplained(right, heard, valid)
        total = sum(weight * terms[name] for name, weight in self.config.weights)
        return total + critic_loss, ({**terms, "critic": critic_loss}, memory)

    def _sample(
        self,
        decoder: Params,
        embedding: jax.Array,
        rate: jax.Array,
        lost: jax.Array,
        frames: jax.Array,
        key: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Standardised spectra as a receiver makes them, and what the codes let expect."""
        variables = {"params": decoder}
        keep = jnp.ones(rate.shape, bool)
        condition = self.decoder.apply(
            variables, embedding, rate, keep, lost, frames, method="condition"
        )

        def velocity(x: jax.Array, t: jax.Array, until: jax.Array) -> jax.Array:
            t, until = (jnp.broadcast_to(time, frames.shape) for time in (t, until))
            return flow.velocity(
                self.decoder.apply(variables, x, t, condition, frames, until), x, t
            )

        noise = self.config.temperature * jax.random.normal(key, condition.mean.shape)
        x1 = flow.solve(velocity, noise, flow.time_grid(self.config.steps), "meanflow")
        return condition.spectrum(x1), condition.mean

    def _judge(
        self, critic: Params, real: jax.Array, made: jax.Array, expected: jax.Array
    ) -> tuple[Metrics, jax.Array]:
        """The critic's part of the decoder's loss, and the critic's own."""

        def judge(params: Params, x: jax.Array) -> list[jax.Array]:
            return self.critic.apply({"params": params}, x, expected)

        still = jax.lax.stop_gradient(critic)
        on_real, on_made = judge(still, real), judge(still, made)
        matching = [
            jnp.mean(jnp.abs(a - b)) / (jnp.mean(jnp.abs(a)) + 1e-3)
            for a, b in zip(on_real[:-1], on_made[:-1], strict=True)
        ]
        terms = {
            "adversarial": jnp.mean(jnp.square(on_made[-1] - 1.0)),
            "matching": jnp.mean(jnp.stack(matching)),
        }
        right = judge(critic, real)[-1]
        wrong = judge(critic, jax.lax.stop_gradient(made))[-1]
        return terms, jnp.mean(jnp.square(right - 1.0)) + jnp.mean(jnp.square(wrong))

    def _hear(self, frozen: Params, level: jax.Array, frames: jax.Array) -> jax.Array:
        """(B, T, D): what the encoder's semantic tower makes of spectra (B, T, 640)."""
        mel = whisper_log_mel_of(level, self.generation.features.config.num_mels)
        valid = valid_spectra(level, frames)
        return self.tower.apply({"params": frozen["encoder"]["semantic"]}, mel, valid)


def _acoustics(spectrum: jax.Array) -> jax.Array:
    """(B, N, 2 COEFFICIENTS) of standardised spectra (B, 4 N, 640)."""
    count = SPECTRA_PER_FRAME * HALVES
    grid = spectrum.reshape(spectrum.shape[0], -1, BANDS)
    parts = (cepstrum(grid, count, COEFFICIENTS), ripples(partials(spectrum), count, COEFFICIENTS))
    return jnp.concatenate(parts, axis=-1)


def _unexplained(right: jax.Array, guess: jax.Array, valid: jax.Array) -> jax.Array:
    """Squared error relative to the variance over time of what is right."""
    right, guess = (x.astype(jnp.float32) for x in (right, guess))
    middle = masked_mean(right, valid)
    error, spread = (
        jnp.mean(jnp.square(x), axis=-1) for x in (right - guess, right - middle[None, None])
    )
    return masked_mean(error, valid) / (masked_mean(spread, valid) + 1e-3)
