"""A picture of a clip beside its reconstruction."""

from __future__ import annotations

import io
from functools import cache

import librosa
import numpy as np
from matplotlib.figure import Figure
from numpy.lib.stride_tricks import sliding_window_view

from gac_jax.rates import SAMPLE_RATE

SHOWN_SECONDS = 30  # of longer clips; more would blur into stripes
FFT, HOP = 2048, 320  # samples: 15.6 Hz resolves speech harmonics, 10 ms resolves onsets
MEL_BANDS = 160
DYNAMIC_RANGE = 80.0  # dB below the loudest point of both panels
TICKS = (100, 500, 1000, 2000, 4000, 8000, 16_000)  # Hz


def draw(original: np.ndarray, reconstruction: np.ndarray, kbps: float, seconds: float) -> Figure:
    """Draws two mel spectrograms up to 16 kHz in decibels on one colour scale.

    Args:
      original: (S,) float32 at 32 kHz; the first `SHOWN_SECONDS` are drawn.
      reconstruction: likewise.
      kbps: rate, for the title.
      seconds: length of the clip that the arrays are the start of; the titles say so if it is cut.
    """
    shown = SHOWN_SECONDS * SAMPLE_RATE
    note = f", first {SHOWN_SECONDS} s" if seconds > SHOWN_SECONDS else ""
    panels = {
        "original": log_mel(original[:shown]),
        f"reconstruction at {kbps:.3f} kbps": log_mel(reconstruction[:shown]),
    }
    top = max(float(panel.max()) for panel in panels.values())
    figure = Figure(figsize=(13, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (title, panel) in zip(axes, panels.items(), strict=True):
        image = axis.imshow(
            panel, origin="lower", aspect="auto", cmap="magma", vmin=top - DYNAMIC_RANGE, vmax=top,
            extent=(0.0, panel.shape[1] * HOP / SAMPLE_RATE, 0.0, MEL_BANDS),
        )  # fmt: skip
        axis.set(title=title + note, xlabel="seconds")
    axes[0].set(ylabel="kHz", yticks=_band_of(TICKS), yticklabels=[f"{f / 1000:g}" for f in TICKS])
    figure.colorbar(image, ax=axes, label="dB")
    return figure


def png(original: np.ndarray, reconstruction: np.ndarray, kbps: float, seconds: float) -> bytes:
    """What `draw` draws, as the contents of a PNG file."""
    buffer = io.BytesIO()
    draw(original, reconstruction, kbps, seconds).savefig(buffer, format="png")
    return buffer.getvalue()


def log_mel(wave: np.ndarray) -> np.ndarray:
    """Mel spectrogram in decibels.

    Args:
      wave: (S,) float32 at 32 kHz.

    Returns:
      (MEL_BANDS, 1 + S // HOP) float32; a full-scale sine in the middle of a band is near 0 dB.
    """
    padded = np.pad(wave.astype(np.float32), FFT // 2)
    window = np.hanning(FFT).astype(np.float32)
    frames = sliding_window_view(padded, FFT)[::HOP] * (window * 2 / window.sum())
    power = np.square(np.abs(np.fft.rfft(frames, axis=-1)))
    return 10.0 * np.log10(np.maximum(_filters() @ power.T, 1e-10))


@cache
def _filters() -> np.ndarray:
    """(MEL_BANDS, FFT // 2 + 1), each with a peak of 1."""
    filters = librosa.filters.mel(
        sr=SAMPLE_RATE, n_fft=FFT, n_mels=MEL_BANDS, fmax=SAMPLE_RATE / 2, norm=None
    )
    return filters.astype(np.float32)


def _band_of(hertz: tuple[int, ...]) -> np.ndarray:
    """Height on the mel axis, in bands: filter m peaks at (m + 1) / (MEL_BANDS + 1) of the top."""
    mel = librosa.hz_to_mel(np.asarray(hertz, float)) / librosa.hz_to_mel(SAMPLE_RATE / 2)
    return np.minimum(mel * (MEL_BANDS + 1) - 0.5, MEL_BANDS)
