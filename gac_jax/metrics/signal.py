"""How far decoded audio is from the original as a signal: mono, 32 kHz, of any domain.

None of these knows what a listener hears. A generative codec that invents other phases, or other
noise of the same colour, does badly by SI-SDR and may still sound right.

| column | definition |
|---|---|
| log_mel_db | `log_mel_distance`: 128 bands, windows of 40 ms every 20 ms |
| log_mel_multi_db | the same, mean over windows of 16, 32 and 64 ms with 40, 80 and 160 bands |
| stft | `stft_distance` (Yamamoto et al., 2020), mean over windows of 16, 32 and 64 ms |
| si_sdr_db | `si_sdr` (Le Roux et al., 2019) |
| bandwidth_khz | `bandwidth` of the decoded audio |
| bandwidth_error_khz | how far that is from the original's, up or down |
| loudness_lu | how far the decoded audio's `loudness` (ITU-R BS.1770-4) is from the original's |

Every column is the mean over clips; what silence does not have is left out.
"""

from __future__ import annotations

import jax
import numpy as np
from scipy.signal import sosfilt

from gac_jax.metrics.metric import ALL, Column, Excerpt
from gac_jax.rates import SAMPLE_RATE, SPECTRUM_HOP
from gac_jax.signal.mel import log_mel_32k

DB_PER_NEPER = 10.0 / np.log(10.0)
DYNAMIC_RANGE_DB = 60.0  # what lies further below the original's loudest cell counts as equal
BAND_EDGE_DB = 65.0  # as in the column bw_hz of manifests
QUIETEST_LUFS = -70.0  # the absolute gate of BS.1770-4

_RESOLUTIONS = ((40, 512), (80, 1024), (160, 2048))  # mel bands, window; the hop is a quarter
_log_mel = jax.jit(log_mel_32k, static_argnums=(1, 2, 3))


class Signal:
    """Distances between two waveforms, and two facts about the decoded one."""

    columns = (
        Column("log_mel_db", "log-mel / dB", False),
        Column("log_mel_multi_db", "multi-res. log-mel / dB", False),
        Column("stft", "multi-res. STFT", False),
        Column("si_sdr_db", "SI-SDR / dB", True, 1),
        Column("bandwidth_khz", "bandwidth / kHz", None, 1),
        Column("bandwidth_error_khz", "bandwidth error / kHz", False, 1),
        Column("loudness_lu", "loudness error / LU", False, 1),
    )
    domains = ALL

    def measure(self, excerpt: Excerpt) -> dict[str, float]:
        """Values by column name; those that silence does not have are left out."""
        pair = excerpt.reference, excerpt.decoded
        multi = [log_mel_distance(*pair, bands, n, n // 4) for bands, n in _RESOLUTIONS]
        wide, decoded_wide = map(bandwidth, pair)
        loud, decoded_loud = map(loudness, pair)
        values = {
            "log_mel_db": log_mel_distance(*pair),
            "log_mel_multi_db": float(np.mean(multi)),
            "stft": stft_distance(*pair),
            "si_sdr_db": si_sdr(*pair),
            "bandwidth_khz": decoded_wide / 1000,
            "bandwidth_error_khz": abs(decoded_wide - wide) / 1000,
            "loudness_lu": abs(decoded_loud - loud),
        }
        return {name: value for name, value in values.items() if np.isfinite(value)}


def log_mel_distance(
    reference: np.ndarray,
    decoded: np.ndarray,
    num_mels: int = 128,
    n_fft: int = 2 * SPECTRUM_HOP,
    hop: int = SPECTRUM_HOP,
) -> float:
    """Mean absolute difference of `log_mel_32k` in dB, floored 60 dB below the original's peak.

    Args:
      reference: (S,) float32 at 32 kHz.
      decoded: likewise.
      num_mels: bands.
      n_fft: window in samples.
      hop: samples between windows.
    """
    size = -(-reference.size // hop) * hop
    pair = np.stack([np.pad(x, (0, size - x.size)) for x in (reference, decoded)])
    mel = np.asarray(_log_mel(pair, num_mels, n_fft, hop)) * DB_PER_NEPER
    mel = np.maximum(mel, mel[0].max() - DYNAMIC_RANGE_DB)
    return float(np.mean(np.abs(mel[0] - mel[1])))


def stft_distance(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Spectral convergence plus mean absolute difference of log magnitudes, over three windows.

    Eqs. 3 to 6 of Yamamoto et al. (Parallel WaveGAN, 2020) with windows of 512, 1024 and 2048
    samples, each moved by a quarter, and magnitudes floored as in `log_mel_distance`: without a
    floor, digital silence would outweigh everything else.

    Args:
      reference: (S,) float32 at 32 kHz.
      decoded: likewise.

    Returns:
      0 for equal magnitudes; NaN for a silent reference.
    """
    return float(np.mean([_one_stft_distance(reference, decoded, n) for _, n in _RESOLUTIONS]))


def si_sdr(reference: np.ndarray, decoded: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al., 2019), means removed.

    Args:
      reference: (S,) float32.
      decoded: likewise.

    Returns:
      dB, within -100 and 100; NaN for a silent reference.
    """
    truth, estimate = (wave.astype(np.float64) for wave in (reference, decoded))
    truth, estimate = truth - truth.mean(), estimate - estimate.mean()
    if not truth.any():
        return float("nan")
    energy = float(truth @ truth) * float(estimate @ estimate)
    explained = float(truth @ estimate) ** 2 / energy if energy else 0.0
    explained = float(np.clip(explained, 1e-10, 1 - 1e-10))
    return float(10 * np.log10(explained / (1 - explained)))


def bandwidth(wave: np.ndarray) -> float:
    """Highest frequency whose mean power is within 65 dB of the loudest frequency's.

    Args:
      wave: (S,) float32 at 32 kHz.

    Returns:
      Hz, in steps of 15.6 Hz; NaN for silence.
    """
    power = np.mean(np.square(_magnitudes(wave, 2048)), axis=0)
    if not power.any():
        return float("nan")
    heard = np.flatnonzero(power >= power.max() * 10 ** (-BAND_EDGE_DB / 10))
    return float(heard[-1] * SAMPLE_RATE / 2048)


def loudness(wave: np.ndarray) -> float:
    """Integrated loudness of mono audio by ITU-R BS.1770-4, with both gates.

    Args:
      wave: (S,) float32 at 32 kHz; less than 400 ms are measured as one block.

    Returns:
      LUFS; -70 for what is no louder.
    """
    weighted = sosfilt(_k_weighting(SAMPLE_RATE), wave.astype(np.float64))
    block = min(round(0.4 * SAMPLE_RATE), wave.size)
    blocks = np.lib.stride_tricks.sliding_window_view(weighted, block)[:: round(0.1 * SAMPLE_RATE)]
    power = np.mean(np.square(blocks), axis=-1)
    power = power[_lufs(power) > QUIETEST_LUFS]
    if not power.size:
        return QUIETEST_LUFS
    relative = _lufs(power.mean(keepdims=True)) - 10
    return float(_lufs(power[_lufs(power) > relative].mean(keepdims=True))[0])


def _lufs(power: np.ndarray) -> np.ndarray:
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-30))


def _k_weighting(rate: int) -> np.ndarray:
    """The two filters of BS.1770-4 as sections (2, 6).

    The standard tabulates them at 48 kHz; these are the analogue filters behind the table, as
    libebur128 has them, turned digital at another rate by the bilinear transform.
    """
    k, q = np.tan(np.pi * 1681.974450955533 / rate), 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    middle = high**0.4996667741545416
    shelf = _section([high, middle / q, 1], [1, 1 / q, 1], k)
    k, q = np.tan(np.pi * 38.13547087602444 / rate), 0.5003270373238773
    high_pass = _section([1, 0, 0], [1, 1 / q, 1], k)
    high_pass[:3] = 1, -2, 1  # the table leaves this filter's gain as it is: above 1
    return np.stack([shelf, high_pass])


def _section(above: list[float], below: list[float], k: float) -> np.ndarray:
    """Digital biquad of two polynomials c2 s^2 + c1 s + c0, s in units of the corner's."""
    b, a = (
        np.array([c2 + c1 * k + c0 * k * k, 2 * (c0 * k * k - c2), c2 - c1 * k + c0 * k * k])
        for c2, c1, c0 in (above, below)
    )
    return np.concatenate([b, a]) / a[0]


def _one_stft_distance(reference: np.ndarray, decoded: np.ndarray, n_fft: int) -> float:
    truth, estimate = (_magnitudes(wave, n_fft) for wave in (reference, decoded))
    if not truth.any():
        return float("nan")
    convergence = np.linalg.norm(truth - estimate) / np.linalg.norm(truth)
    floor = truth.max() * 10 ** (-DYNAMIC_RANGE_DB / 20)
    truth, estimate = (np.log(np.maximum(x, floor)) for x in (truth, estimate))
    return float(convergence + np.mean(np.abs(truth - estimate)))


def _magnitudes(wave: np.ndarray, n_fft: int) -> np.ndarray:
    """Magnitudes (T, F) of Hann windows moved by a quarter, all within the audio."""
    padded = np.pad(wave.astype(np.float32), (0, max(0, n_fft - wave.size)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[:: n_fft // 4]
    return np.abs(np.fft.rfft(frames * np.hanning(n_fft + 1)[:-1].astype(np.float32)))
