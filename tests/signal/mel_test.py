import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from gac_jax.signal.log_spectrum import log_spectrum
from gac_jax.signal.mel import decimate2, log_mel_32k, whisper_log_mel, whisper_log_mel_of


def voice_like(rng: np.random.Generator, sample_rate: int, seconds: float) -> np.ndarray:
    """Gliding harmonics over a noise floor, with a silence in the middle, float32."""
    time = np.arange(int(seconds * sample_rate)) / sample_rate
    phase = 2 * np.pi * np.cumsum(140 + 40 * np.sin(3 * time)) / sample_rate
    wave = sum(np.sin(k * phase) / k for k in range(1, 25)) * (1 + np.sin(11 * time))
    wave = 0.1 * wave + 0.003 * rng.standard_normal(len(time))
    wave[len(wave) // 3 : len(wave) // 2] = 0
    return wave.astype(np.float32)


def published_whisper_mel(wave: np.ndarray, num_mels: int) -> np.ndarray:
    """Whisper's definition in NumPy and float64: a centred STFT, its last frame dropped."""
    padded = np.pad(wave.astype(np.float64), 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.lib.stride_tricks.sliding_window_view(padded, 400)[::160] * window
    power = np.abs(np.fft.rfft(frames)[:-1]) ** 2
    filters = librosa.filters.mel(sr=16_000, n_fft=400, n_mels=num_mels, dtype=np.float64)
    log_mel = np.log10(np.maximum(filters @ power.T, 1e-10))
    return (np.maximum(log_mel, log_mel.max() - 8) + 4) / 4


@pytest.mark.parametrize("num_mels", [80, 128])
@pytest.mark.parametrize("samples", [16_000, 12_345])
def test_whisper_features_are_the_published_ones(
    rng: np.random.Generator, num_mels: int, samples: int
) -> None:
    loud = voice_like(rng, 16_000, 1.0)[:samples]
    wave = np.stack([loud, 0.01 * loud[::-1]])
    features = jax.jit(whisper_log_mel, static_argnums=1)(wave, num_mels)
    assert features.shape == (2, num_mels, samples // 160) and features.dtype == jnp.float32
    for row, expected in zip(features, wave, strict=True):
        np.testing.assert_allclose(row, published_whisper_mel(expected, num_mels), atol=1e-4)


def test_a_log_spectrum_tells_what_whisper_hears(rng: np.random.Generator) -> None:
    """Of steady audio, the level in each band; of a voice, all but what longer windows blur."""
    steady = rng.standard_normal((1, 32_000)).astype(np.float32)
    voice = voice_like(rng, 32_000, 1.0)[None]
    for wave, least in ((steady, 0.0), (voice / voice.std(), 0.95)):
        exact = np.asarray(whisper_log_mel(decimate2(jnp.asarray(wave))))
        found = np.asarray(whisper_log_mel_of(log_spectrum(jnp.asarray(wave))))
        assert found.shape == exact.shape
        assert np.corrcoef(exact.ravel(), found.ravel())[0, 1] > least
        np.testing.assert_allclose(found.mean(), exact.mean(), atol=0.05)  # 2 dB are 0.05


def test_a_silent_log_spectrum_has_finite_gradients() -> None:
    level = log_spectrum(jnp.zeros((1, 6400)))
    gradient = jax.grad(lambda x: jnp.sum(whisper_log_mel_of(x)))(level)
    assert np.isfinite(gradient).all()


def test_whisper_features_of_silence() -> None:
    np.testing.assert_allclose(whisper_log_mel(jnp.zeros((1, 1600))), -1.5, rtol=1e-6)


@pytest.mark.parametrize(("n_fft", "hop"), [(1280, 640), (2048, 320)])
def test_full_band_mel_is_the_definition(rng: np.random.Generator, n_fft: int, hop: int) -> None:
    wave = voice_like(rng, 32_000, 0.6)
    padded = np.pad(wave.astype(np.float64), (n_fft - hop) // 2)
    window = np.hanning(n_fft + 1)[:-1]
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop] * window
    density = np.abs(np.fft.rfft(frames)) ** 2 / np.sum(window**2)
    filters = librosa.filters.mel(sr=32_000, n_fft=n_fft, n_mels=96, dtype=np.float64)
    expected = np.log(np.maximum(density @ filters.T * 32_000 / n_fft, 1e-7)).T
    mel = log_mel_32k(jnp.asarray(wave)[None], 96, n_fft, hop)
    assert mel.shape == (1, 96, len(wave) // hop) and mel.dtype == jnp.float32
    np.testing.assert_allclose(mel[0], expected, atol=1e-4)


def test_white_noise_of_unit_rms_reads_zero_in_every_band(rng: np.random.Generator) -> None:
    wave = jnp.asarray(rng.standard_normal((4, 64_000)), jnp.float32)
    density = np.mean(np.exp(log_mel_32k(wave)), axis=(0, 2))
    # Slaney's sampled triangles have not quite unit area where they are a bin or two wide.
    np.testing.assert_allclose(density[64:], 1.0, atol=0.1)
    np.testing.assert_allclose(density[:64], 1.0, atol=0.35)


def test_silence_reads_the_floor() -> None:
    np.testing.assert_allclose(log_mel_32k(jnp.zeros((1, 6400))), np.log(1e-7), rtol=1e-6)


def test_a_frame_is_centred_on_its_block() -> None:
    wave = jnp.zeros((1, 10 * 640)).at[0, 4 * 640 + 320].set(1.0)  # the middle of block 4
    energy = np.exp(log_mel_32k(wave)[0]).sum(axis=0)
    assert energy.argmax() == 4
    np.testing.assert_allclose(energy[3], energy[5], rtol=0.02)


def decimator_response() -> tuple[np.ndarray, np.ndarray]:
    """Hertz and decibels, from impulses at an even and at an odd sample."""
    centre, size = 1000, 2000
    pulses = jnp.zeros((2, size)).at[0, centre].set(1.0).at[1, centre + 1].set(1.0)
    outputs = np.asarray(decimate2(pulses), np.float64)
    impulse = np.zeros(size)
    impulse[::2] = outputs[0]
    impulse[1:-1:2] = outputs[1, 1:]  # one sample later in, so one sample earlier
    spectrum = np.abs(np.fft.rfft(impulse, 1 << 16))
    return np.fft.rfftfreq(1 << 16, 1 / 32_000), 20 * np.log10(spectrum + 1e-12)


def test_the_decimator_passes_speech_and_stops_what_would_alias() -> None:
    hertz, decibels = decimator_response()
    assert np.abs(decibels[hertz <= 7200]).max() < 0.001
    assert decibels[hertz >= 8500].max() < -80
    np.testing.assert_allclose(decibels[np.abs(hertz - 8000).argmin()], -6.02, atol=0.01)


@pytest.mark.parametrize("samples", [64_000, 2, 254, 256, 258])
def test_the_decimator_has_no_delay_at_any_length(rng: np.random.Generator, samples: int) -> None:
    time = np.arange(-4000, samples + 4000) / 32_000
    wave = sum(np.sin(2 * np.pi * hertz * time + hertz) for hertz in (200, 3100, 6900))
    wave = (wave * np.hanning(len(time))).astype(np.float32)
    long = jax.jit(decimate2)(jnp.asarray(wave)[None])
    np.testing.assert_allclose(long[0, 200:-200], wave[::2][200:-200], atol=1e-4)
    short = decimate2(jnp.asarray(wave[4000 : 4000 + samples])[None])
    assert short.shape == (1, samples // 2) and short.dtype == jnp.float32
    inner = slice(44, max(44, samples // 2 - 44))  # the edges see zeros instead of neighbours
    np.testing.assert_allclose(short[0, inner], long[0, 2000:][inner], atol=1e-5)
