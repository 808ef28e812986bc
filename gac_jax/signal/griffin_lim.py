"""Phases for magnitudes: the fast Griffin-Lim algorithm, compiled as one `lax.scan`.

References: Griffin and Lim, "Signal estimation from modified short-time Fourier transform" (1984);
Perraudin, Balazs and Sondergaard, "A fast Griffin-Lim algorithm" (2013).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gac_jax.signal.stft import istft, stft

ITERATIONS = 16  # phases settle locally: windows that overlap by 320 ms agree in its middle
MOMENTUM = 0.99
_TINY = 1e-12


def griffin_lim(magnitude: jax.Array, start: jax.Array) -> jax.Array:
    """A waveform whose short-time spectra have nearly the given magnitudes.

    Args:
      magnitude: (B, T, 641) float32, see `gac_jax.signal.stft`.
      start: (B, 320 T) float32, the waveform whose phases are the first guess. Where two starts
        and two magnitudes agree over some 100 ms, so do the waveforms.

    Returns:
      (B, 320 T) float32.
    """

    def turn(spectrum: jax.Array) -> jax.Array:
        """The given magnitudes with the phases of `spectrum`."""
        gain = magnitude / jnp.maximum(jnp.abs(spectrum), _TINY)
        return gain.astype(spectrum.dtype) * spectrum

    def improve(
        state: tuple[jax.Array, jax.Array], _: None
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        guess, before = state
        consistent = stft(istft(turn(guess)))
        return (consistent + MOMENTUM * (consistent - before), consistent), None

    first = stft(start)
    (guess, _), _ = jax.lax.scan(improve, (first, first), None, length=ITERATIONS)
    return istft(turn(guess))
