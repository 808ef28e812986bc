"""The rate ladder: frames, bits and codebooks.

One code frame covers 2,560 samples at 32 kHz (12.5 Hz) and carries one 14-bit semantic code and
k residual codes of 8 bits, so a stream takes 12.5 (14 + 8 k) bit/s: 0.175 to 0.975 kbps.
"""

from __future__ import annotations

from gac_jax.errors import UserError

SAMPLE_RATE = 32_000  # Hz, of every waveform inside the codec
FRAME_SAMPLES = 2_560  # samples in one code frame
FRAME_RATE = SAMPLE_RATE / FRAME_SAMPLES  # 12.5 Hz
SPECTRUM_HOP = 640  # samples in one frame of the flow (50 Hz)
SPECTRA_PER_FRAME = FRAME_SAMPLES // SPECTRUM_HOP
SEMANTIC_BITS = 14
RESIDUAL_BITS = 8
MAX_RESIDUAL = 8
LADDER = (0, 1, 2, 4, 8)  # residual codebooks at the five rates of the GAC report


def kbps(num_residuals: int) -> float:
    """Returns the nominal bit rate in kbit/s of a semantic and `num_residuals` residual codes.

    Raises:
      ValueError: if `num_residuals` is not within 0 .. 8.
    """
    if not 0 <= num_residuals <= MAX_RESIDUAL:
        raise ValueError(f"num_residuals must be within 0 .. {MAX_RESIDUAL}, not {num_residuals}")
    return FRAME_RATE * (SEMANTIC_BITS + RESIDUAL_BITS * num_residuals) / 1000


def residuals_for(rate: float) -> int:
    """Returns how many residual codebooks, 0 .. 8, give a bit rate in kbit/s.

    Raises:
      UserError: if `rate` is none of the nine rates.
    """
    for num_residuals in range(MAX_RESIDUAL + 1):
        if abs(kbps(num_residuals) - rate) < 1e-6:
            return num_residuals
    rates = ", ".join(f"{kbps(k):.3f}" for k in range(MAX_RESIDUAL + 1))
    raise UserError(f"{rate} kbps is not a rate of this codec: choose one of {rates}")


def num_frames(num_samples: int) -> int:
    """Returns how many code frames cover `num_samples` samples at 32 kHz; the last may be partial.

    Raises:
      ValueError: if `num_samples` is negative.
    """
    if num_samples < 0:
        raise ValueError(f"num_samples must not be negative, but is {num_samples}")
    return -(-num_samples // FRAME_SAMPLES)
