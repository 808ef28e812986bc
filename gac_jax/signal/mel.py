"""Log-mel spectrograms: what the encoder looks at.

Frames are gathered and transformed by an FFT; on two CPU cores that took a half (400 points) to a
fifth (1,280 points) of the time of a DFT by matmul. Mel filters are librosa's (Slaney's scale and
area normalisation), as Whisper's are.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from gac_jax.rates import SAMPLE_RATE, SPECTRUM_HOP
from gac_jax.signal.log_spectrum import powers
from gac_jax.signal.stft import WINDOW

_HIGHEST = jax.lax.Precision.HIGHEST
_WHISPER_RATE, _WHISPER_FFT, _WHISPER_HOP = 16_000, 400, 160

# Power density, relative to white noise of unit RMS, below which log_mel_32k hears nothing:
# 16-bit audio at ordinary levels has its own noise a little lower.
_FLOOR = 1e-7

_TAPS_PER_SIDE = 44  # of the half-band filter, not counting its zeros
_KAISER_BETA = 8.3
_OUTPUTS_PER_FRAME = 128  # the width at which filtering by matmul was fastest


def whisper_log_mel(wave: jax.Array, num_mels: int = 80) -> jax.Array:
    """Computes the input features of Whisper (Radford et al., 2022), as its authors define them.

    Args:
      wave: (B, S) float32 at 16 kHz, S > 200.
      num_mels: M, 80, or 128 for large-v3.

    Returns:
      (B, M, S // 160) float32 at 100 Hz. Each row is clamped to 80 dB below its own peak.
    """
    padded = jnp.pad(wave, ((0, 0), (_WHISPER_FFT // 2, _WHISPER_FFT // 2)), mode="reflect")
    power = _power_spectrum(padded, _WHISPER_FFT, _WHISPER_HOP, wave.shape[1] // _WHISPER_HOP)
    return _whisper_scale(
        _apply_filters(power, _mel_filters(_WHISPER_RATE, _WHISPER_FFT, num_mels))
    )


def whisper_log_mel_of(level: jax.Array, num_mels: int = 80) -> jax.Array:
    """What `whisper_log_mel` makes of audio whose log spectrum this is, as far as that tells.

    Windows here are of 40 ms, 5 ms later, and Whisper's of 25 ms: what it hears is less sharp.

    Args:
      level: (B, T, 640) from `gac_jax.signal.log_spectrum`.
      num_mels: M, as there.

    Returns:
      (B, M, 2 T) float32 at 100 Hz.
    """
    filters = _mel_filters(SAMPLE_RATE, WINDOW, num_mels, _WHISPER_RATE / 2)
    # Both filter banks integrate to 1 over hertz. White noise of unit RMS has mean square 1 in each
    # bin of `stft`; half of it is left at 16 kHz, where each bin holds the energy of the window.
    width = SAMPLE_RATE / WINDOW * _WHISPER_FFT / _WHISPER_RATE
    scale = 0.5 * np.sum(np.square(_hann(_WHISPER_FFT))) * width
    return _whisper_scale(_apply_filters(powers(level), filters * np.float32(scale)))


def log_mel_32k(
    wave: jax.Array, num_mels: int = 128, n_fft: int = 2 * SPECTRUM_HOP, hop: int = SPECTRUM_HOP
) -> jax.Array:
    """Computes the natural log of the mean power density in each mel band up to 16 kHz.

    Frame t is centred on samples [t * hop, (t + 1) * hop), so that frames align with code frames.

    Args:
      wave: (B, S) float32 at 32 kHz, S a multiple of `hop`; zeros are assumed beyond its ends.
      num_mels: M.
      n_fft: window length in samples, at least `hop`, of the same parity.
      hop: samples between frames.

    Returns:
      (B, M, S / hop) float32: 0 for white noise of unit RMS, and never below log(1e-7).
    """
    overlap = (n_fft - hop) // 2
    padded = jnp.pad(wave, ((0, 0), (overlap, overlap)))
    power = _power_spectrum(padded, n_fft, hop, wave.shape[1] // hop)
    # Slaney's filters integrate to 1 over hertz; white noise of unit RMS has the window's energy.
    scale = SAMPLE_RATE / n_fft / np.sum(np.square(_hann(n_fft)))
    filters = _mel_filters(SAMPLE_RATE, n_fft, num_mels) * np.float32(scale)
    return jnp.log(jnp.maximum(_apply_filters(power, filters), _FLOOR))


def decimate2(wave: jax.Array) -> jax.Array:
    """Halves the sample rate, 32 to 16 kHz, without delay.

    A linear-phase half-band filter: flat within 0.001 dB to 7.2 kHz, -6 dB at 8 kHz, below -80 dB
    from 8.5 kHz on. Every second tap but the middle one is zero, so only odd samples are filtered.

    Args:
      wave: (B, S) float32 at 32 kHz, S even; zeros are assumed beyond its ends.

    Returns:
      (B, S / 2) float32 at 16 kHz.
    """
    even, odd = wave[:, ::2], wave[:, 1::2]
    size = even.shape[1]
    num_frames = -(-size // _OUTPUTS_PER_FRAME)
    tail = num_frames * _OUTPUTS_PER_FRAME - size + _TAPS_PER_SIDE - 1
    odd = jnp.pad(odd, ((0, 0), (_TAPS_PER_SIDE, tail)))
    filters = _half_band_matrix()
    frames = _frame(odd, filters.shape[0], _OUTPUTS_PER_FRAME, num_frames)
    filtered = jnp.matmul(frames, filters, precision=_HIGHEST).reshape(wave.shape[0], -1)
    return 0.5 * even + filtered[:, :size]


def _whisper_scale(mel: jax.Array) -> jax.Array:
    """Log of mel power (B, M, T), clamped to 80 dB below each row's peak, and Whisper's scale."""
    log_mel = jnp.log10(jnp.maximum(mel, 1e-10))
    peak = jnp.max(log_mel, axis=(1, 2), keepdims=True)
    return (jnp.maximum(log_mel, jnp.broadcast_to(peak - 8.0, log_mel.shape)) + 4.0) / 4.0


def _frame(wave: jax.Array, length: int, hop: int, num_frames: int) -> jax.Array:
    """Cuts (B, S) into overlapping (B, T, length)."""
    starts = hop * jnp.arange(num_frames)
    return wave[:, starts[:, None] + jnp.arange(length)[None, :]]


def _power_spectrum(wave: jax.Array, n_fft: int, hop: int, num_frames: int) -> jax.Array:
    """Squared magnitudes (B, T, n_fft / 2 + 1) of Hann-windowed frames."""
    window = jnp.asarray(_hann(n_fft))[None, None, :]
    spectrum = jnp.fft.rfft(_frame(wave, n_fft, hop, num_frames) * window)
    return jnp.square(jnp.real(spectrum)) + jnp.square(jnp.imag(spectrum))


def _apply_filters(power: jax.Array, filters: np.ndarray) -> jax.Array:
    return jnp.einsum("mf,btf->bmt", filters, power, precision=_HIGHEST)


def _hann(n_fft: int) -> np.ndarray:
    """The periodic Hann window, float32."""
    return np.hanning(n_fft + 1)[:-1].astype(np.float32)


@lru_cache(maxsize=8)
def _mel_filters(
    sample_rate: int, n_fft: int, num_mels: int, highest: float | None = None
) -> np.ndarray:
    """Slaney's mel filters (M, n_fft / 2 + 1) up to `highest` hertz, float32."""
    from librosa.filters import mel  # half a second: not for those who only import this module

    return mel(sr=sample_rate, n_fft=n_fft, n_mels=num_mels, fmax=highest)


@lru_cache(maxsize=1)
def _half_band_matrix() -> np.ndarray:
    """The half-band filter's odd taps as a matrix that turns a frame of odd samples to outputs."""
    offsets = np.arange(1 - 2 * _TAPS_PER_SIDE, 2 * _TAPS_PER_SIDE, 2)  # in samples at 32 kHz
    ratio = offsets / (2 * _TAPS_PER_SIDE)
    taps = np.sinc(offsets / 2) * np.i0(_KAISER_BETA * np.sqrt(1 - np.square(ratio)))
    taps *= 0.5 / taps.sum()  # the middle tap is 0.5: unit gain at 0 Hz, none at 16 kHz
    matrix = np.zeros((_OUTPUTS_PER_FRAME + len(taps) - 1, _OUTPUTS_PER_FRAME), np.float32)
    for output in range(_OUTPUTS_PER_FRAME):
        matrix[output : output + len(taps), output] = taps
    return matrix
