"""The pitch of a voice in each spectrum, and how clearly it is heard, by its partials.

A comb is what evenly spaced partials look like in a log spectrum without its envelope. A spectrum
is compared with combs of all pitches, and the best path through them is found by the algorithm of
Viterbi (1967): pitch moves by little, voices begin and end seldom.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gac_jax.rates import FRAME_SAMPLES, SAMPLE_RATE
from gac_jax.signal.cepstrum import LOWEST_RIPPLE, dct2
from gac_jax.signal.log_spectrum import LINEAR_BANDS
from gac_jax.signal.stft import HOP, WINDOW

LOWEST, HIGHEST = 65.0, 330.0  # hertz
REFERENCE = 150.0  # hertz, from which octaves are counted
STEPS_PER_OCTAVE = 140  # of half a per cent
STRIDE = 3  # of these steps lie between two pitches of a path
FEATURES = 2 * FRAME_SAMPLES // HOP  # of a code frame
NOISE = 0.05  # between partials, of their amplitude
FADE = 1250.0  # hertz, over which evidence loses weight: upper partials are smeared by glides
QUIET = 0.5  # ripples of less deviation in all do not count as a voice however regular they are

# What a path through the combs pays, in correlation with the spectra.
UNVOICED = 0.35  # what no voice has instead of a correlation
ONSET = 0.3  # a voice that begins or ends
GLIDE, LEAP, FAR = 0.02, 0.04, 6  # a step; beyond so many steps each is dearer

# Correlations that count as no voice at all, and as a clear one; chords in music have 0.47.
WEAK, CLEAR = 0.45, 0.7
OCTAVE_WEIGHT = 4.0  # of an octave, in features, against the whole of a strength


class Pitch(NamedTuple):
    """Of spectra: arrays (B, S) float32.

    Attributes:
      strength: 0 where there is no voice, up to 1 for one whose partials are clear.
      octaves: above `REFERENCE`; without meaning where strength is 0.
    """

    strength: jax.Array
    octaves: jax.Array


def track(level: jax.Array, valid: jax.Array) -> Pitch:
    """Finds the pitch.

    Args:
      level: (B, S, 160) float32, natural log amplitude of single bins, see `log_spectrum.partials`.
      valid: (B, S) bool; beyond a row's length there is no voice.

    Returns:
      Of each spectrum; pitches are 1.5 % apart.
    """
    pitches = np.arange(0, len(combs()), STRIDE)
    weight = np.exp(-0.5 * hertz() / FADE)
    templates = combs()[pitches] * weight
    templates /= np.linalg.norm(templates, axis=1, keepdims=True)
    seen = ripple(level) * weight.astype(np.float32)[None, None]
    power = jnp.linalg.norm(seen, axis=-1, keepdims=True)
    match = jnp.einsum("bsf,kf->bsk", seen, templates.astype(np.float32), precision="highest")
    match = jnp.maximum(match, 0.0) / jnp.maximum(power, QUIET)
    match = jnp.where(valid[:, :, None], match, 0.0)
    none = jnp.full((*match.shape[:2], 1), UNVOICED)
    path = _viterbi(jnp.concatenate([match, none], axis=-1), _costs(len(pitches)))
    voiced, path = path < len(pitches), jnp.minimum(path, len(pitches) - 1)
    clear = _mean_of_three(jnp.take_along_axis(match, path[:, :, None], axis=-1)[:, :, 0])
    strength = jnp.clip((clear - WEAK) / (CLEAR - WEAK), 0.0, 1.0)
    octaves = np.log2(LOWEST / REFERENCE) + path * STRIDE / STEPS_PER_OCTAVE
    return Pitch(jnp.where(voiced, strength, 0.0), octaves.astype(jnp.float32))


def to_features(pitch: Pitch, frames: int) -> jax.Array:
    """Numbers in which an error costs as much as it is heard: how high counts where it is clear.

    Args:
      pitch: of (B, N * frames) spectra.
      frames: spectra in one code frame.

    Returns:
      (B, N, 2 * frames) float32.
    """
    rows = (pitch.strength.shape[0], -1, frames)
    high = OCTAVE_WEIGHT * pitch.strength * pitch.octaves
    return jnp.concatenate([pitch.strength.reshape(rows), high.reshape(rows)], axis=-1)


def from_features(features: jax.Array) -> Pitch:
    """Undoes `to_features`, of features (B, N, 2 * frames) that may be coarse: smooth over time."""
    strength, high = (
        _smooth(half.reshape(half.shape[0], -1)) for half in jnp.split(features, 2, axis=-1)
    )
    octaves = high / (OCTAVE_WEIGHT * jnp.maximum(strength, 0.05))
    return Pitch(jnp.clip(strength, 0.0, 1.0), octaves)


def ripple(level: jax.Array) -> jax.Array:
    """Level (B, S, 160) without its envelope."""
    projection = _without_envelope().astype(np.float32)
    return jnp.einsum("bsf,fg->bsg", level, projection, precision="highest")


def comb(octaves: jax.Array) -> jax.Array:
    """The ripple of equal partials, (B, S, 160), of pitches (B, S) as in `Pitch`."""
    steps = (octaves - np.log2(LOWEST / REFERENCE)) * STEPS_PER_OCTAVE
    nearest = jnp.clip(jnp.round(steps), 0, len(combs()) - 1).astype(jnp.int32)
    return jnp.asarray(combs(), jnp.float32)[nearest]


def hertz() -> np.ndarray:
    """Centres of the single bins, (160,)."""
    return np.arange(1, LINEAR_BANDS + 1) * SAMPLE_RATE / WINDOW


@lru_cache(maxsize=1)
def combs() -> np.ndarray:
    """(P, 160): log amplitude of equal partials of P pitches, without its envelope."""
    octaves = np.arange(0.0, np.log2(HIGHEST / LOWEST), 1 / STEPS_PER_OCTAVE)
    pitch = LOWEST * 2.0**octaves
    bins = hertz()[None]
    nearest = np.maximum(1.0, np.round(bins / pitch[:, None]))
    amplitude = np.zeros((len(pitch), LINEAR_BANDS))
    for offset in (-1, 0, 1):
        order = nearest + offset
        lobe = _window_transform(bins - order * pitch[:, None])
        amplitude += np.where(order > 0, lobe, 0.0)
    return np.log(amplitude + NOISE) @ _without_envelope()


@lru_cache(maxsize=1)
def _without_envelope() -> np.ndarray:
    """(160, 160): the projection on the orders of ripples."""
    basis = dct2(LINEAR_BANDS)[LOWEST_RIPPLE:]
    return basis.T @ basis


def _window_transform(offset: np.ndarray) -> np.ndarray:
    """Amplitude of a Hann window's transform, 1 at its centre, `offset` hertz away from it."""
    lobe = offset * WINDOW / SAMPLE_RATE
    lobe = np.where(np.abs(np.abs(lobe) - 1.0) < 1e-6, lobe + 1e-4, lobe)  # a limit of 0 / 0
    return np.abs(np.sinc(lobe) / (1.0 - lobe**2))


@lru_cache(maxsize=1)
def _costs(pitches: int) -> np.ndarray:
    """(pitches + 1, pitches + 1) float32: what a step of the path costs; the last has no voice."""
    steps = np.abs(np.subtract.outer(np.arange(pitches), np.arange(pitches)))
    costs = np.full((pitches + 1, pitches + 1), ONSET)
    costs[:-1, :-1] = GLIDE * np.minimum(steps, FAR) + LEAP * np.maximum(steps - FAR, 0)
    costs[-1, -1] = 0.0
    return costs.astype(np.float32)


def _viterbi(scores: jax.Array, costs: np.ndarray) -> jax.Array:
    """The path of most score (B, S, K) less costs (K from, K to), to the last state: (B, S)."""
    over_time = jnp.moveaxis(scores, 1, 0)

    def forward(best: jax.Array, score: jax.Array) -> tuple[jax.Array, jax.Array]:
        ways = best[:, :, None] - costs[None]
        return jnp.max(ways, axis=1) + score, jnp.argmax(ways, axis=1)

    def backward(state: jax.Array, origins: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.take_along_axis(origins, state[:, None], axis=1)[:, 0], state

    best, origins = jax.lax.scan(forward, over_time[0], over_time[1:])
    # As if silence followed: what is beyond a row's end changes nothing before it.
    last = jnp.argmax(best - costs[None, :, -1], axis=1)
    first, path = jax.lax.scan(backward, last, origins, reverse=True)
    return jnp.moveaxis(jnp.concatenate([first[None], path]), 0, 1)


def _mean_of_three(x: jax.Array) -> jax.Array:
    return _filtered(x, np.full(3, 1 / 3), "constant")


def _smooth(x: jax.Array) -> jax.Array:
    """Gaussian of a deviation of one spectrum."""
    weights = np.exp(-0.5 * np.arange(-4, 5) ** 2)
    return _filtered(x, weights / np.sum(weights), "edge")


def _filtered(x: jax.Array, weights: np.ndarray, ends: str) -> jax.Array:
    """Weighted sums of neighbours in time of x (B, S); `ends` is the mode of padding."""
    reach = len(weights) // 2
    padded = jnp.pad(x, ((0, 0), (reach, reach)), mode=ends)
    moved = jnp.stack([padded[:, i : i + x.shape[1]] for i in range(len(weights))])
    return jnp.einsum("ibs,i->bs", moved, weights.astype(np.float32), precision="highest")
