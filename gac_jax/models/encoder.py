"""The encoder Q(Z|X) before quantisation: what is said, and how it sounds.

Two towers look at the same waveform. A Whisper-architecture Transformer on the 16 kHz log-mel
gives semantic features; the cepstrum of the full-band 32 kHz log-mel, corrected by a light
convolutional tower, the ripples that partials of voices make in a finer spectrum and their pitch
are the acoustic feature, because deep speech-recognition features have lost the acoustics and a
16 kHz front end cannot see above 8 kHz.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from gac_jax.models.layers import ConvNeXtBlock, attend, by_rows, dense, sinusoids
from gac_jax.rates import FRAME_SAMPLES
from gac_jax.signal import pitch
from gac_jax.signal.cepstrum import cepstrum, ripples
from gac_jax.signal.log_spectrum import log_spectrum, partials
from gac_jax.signal.mel import decimate2, log_mel_32k, whisper_log_mel

POOL = 4  # 50 Hz features in one 12.5 Hz code frame
LOG_MEL_MEAN = -4.0  # brings log-mels of unit-RMS audio near zero mean, unit variance
LOG_MEL_STD = 4.0
RIPPLE_WEIGHT = 1.5  # of ripples against the envelope: voices without partials are hoarse


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Size of the encoder.

    Attributes:
      width: channels D of the Whisper tower.
      depth: Transformer blocks of the Whisper tower.
      num_heads: attention heads.
      num_mels: Whisper mel bands, 80, or 128 for large-v3.
      acoustic_width: channels of the acoustic tower.
      acoustic_depth: ConvNeXt blocks of the acoustic tower; 0 leaves the cepstrum as it is.
      acoustic_mels: mel bands up to 16 kHz.
      acoustic_features: cepstral coefficients of a code frame, which residual codebooks describe.
      ripple_features: further ones, of the partials of voices, which they describe as well.
      remat: recompute block activations in the backward pass.
      dtype: compute dtype of matmuls.
    """

    width: int
    depth: int
    num_heads: int
    num_mels: int = 80
    acoustic_width: int = 256
    acoustic_depth: int = 4
    acoustic_mels: int = 128
    acoustic_features: int = 64
    ripple_features: int = 64
    remat: bool = False
    dtype: str = "float32"


class Features(nn.Module):
    """Waveform to the two features that the quantiser turns into codes."""

    config: EncoderConfig

    def setup(self) -> None:
        """Builds both towers."""
        self.semantic = WhisperEncoder(self.config)
        self.acoustic = AcousticTower(self.config)

    def __call__(self, wave: jax.Array, num_frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Describes audio at 12.5 Hz.

        Args:
          wave: (B, N * 2560) float32 at 32 kHz, unit RMS, zeros beyond a row's length.
          num_frames: (B,) int32 valid code frames of each row.

        Returns:
          semantic (B, N, 4 D) and acoustic (B, N, acoustic_features + ripple_features + 16), the
          last 16 those of `gac_jax.signal.pitch`; float32.
        """
        frames = wave.shape[1] // FRAME_SAMPLES
        valid = jnp.arange(frames * POOL)[None] < num_frames[:, None] * POOL
        mel = whisper_log_mel(decimate2(wave), self.config.num_mels)
        semantic = self.semantic(mel, valid)
        envelope = self.acoustic(normalised_log_mel(wave, self.config.acoustic_mels), valid)
        # The natural log of power is twice that of amplitude.
        level = partials(log_spectrum(wave))
        spread = level.shape[1] // frames
        ripple = ripples(2.0 * level / LOG_MEL_STD, spread, self.config.ripple_features)
        heard = jnp.repeat(valid, spread // POOL, axis=1)
        voice = pitch.to_features(pitch.track(level, heard), spread)
        acoustic = [envelope, RIPPLE_WEIGHT * ripple, voice]
        pooled = semantic.reshape(wave.shape[0], frames, POOL * self.config.width)
        return pooled.astype(jnp.float32), jnp.concatenate(acoustic, -1).astype(jnp.float32)


class WhisperEncoder(nn.Module):
    """The encoder of Whisper (Radford et al., 2022); its published weights load unchanged."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, mel: jax.Array, valid: jax.Array) -> jax.Array:
        """Maps mel (B, M, 2 T) to (B, T, D), attending to frames where valid (B, T) holds."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        x = jnp.swapaxes(mel, 1, 2).astype(dtype)
        x = _gelu(nn.Conv(config.width, (3,), padding=1, dtype=dtype, name="conv1")(x))
        x = _gelu(nn.Conv(config.width, (3,), 2, padding=1, dtype=dtype, name="conv2")(x))
        positions = sinusoids(jnp.arange(x.shape[1]), config.width)
        x = x + positions.astype(dtype)[None]
        block = nn.remat(WhisperBlock, prevent_cse=False) if config.remat else WhisperBlock
        x, _ = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.depth,
        )(config, name="blocks")(x, valid)
        return nn.LayerNorm(epsilon=1e-5, dtype=dtype, name="norm")(x)


class WhisperBlock(nn.Module):
    """Pre-norm self-attention and MLP; as in Whisper, keys have no bias."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> tuple[jax.Array, None]:
        """Maps (B, T, D) to (B, T, D)."""
        width, dtype = self.config.width, jnp.dtype(self.config.dtype)
        heads = (*x.shape[:2], self.config.num_heads, width // self.config.num_heads)
        x = by_rows(x)
        h = nn.LayerNorm(epsilon=1e-5, dtype=dtype, name="attention_norm")(x)
        query = dense(width, dtype=dtype, name="query")(h).reshape(heads)
        key = dense(width, use_bias=False, dtype=dtype, name="key")(h).reshape(heads)
        value = dense(width, dtype=dtype, name="value")(h).reshape(heads)
        mixed = attend(query, key, value, valid).reshape(x.shape)
        x = x + dense(width, dtype=dtype, name="out")(mixed)
        h = nn.LayerNorm(epsilon=1e-5, dtype=dtype, name="mlp_norm")(x)
        h = _gelu(dense(4 * width, dtype=dtype, name="mlp_in")(h))
        return by_rows(x + dense(width, dtype=dtype, name="mlp_out")(h)), None


class AcousticTower(nn.Module):
    """The cepstrum of each code frame, and what ConvNeXt blocks over the log-mel add to it.

    At first they add nothing. Codes of the bare cepstrum say more than those of a feature that the
    blocks had to find by themselves did after a thousand steps.
    """

    config: EncoderConfig

    @nn.compact
    def __call__(self, mel: jax.Array, valid: jax.Array) -> jax.Array:
        """Maps mel (B, 4 N, M) to (B, N, acoustic_features)."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        bare = cepstrum(mel, POOL, config.acoustic_features)
        if not config.acoustic_depth:
            return bare
        x = dense(config.acoustic_width, dtype=dtype, name="input")(mel.astype(dtype))
        for i in range(config.acoustic_depth):
            x = ConvNeXtBlock(dtype=dtype, name=f"block_{i}")(x, valid)
        x = nn.LayerNorm(dtype=dtype, name="norm")(x)
        x = x.reshape(x.shape[0], x.shape[1] // POOL, POOL * config.acoustic_width)
        zeros = nn.initializers.zeros
        added = dense(config.acoustic_features, kernel_init=zeros, dtype=dtype, name="output")(x)
        return bare + added.astype(jnp.float32)


def normalised_log_mel(wave: jax.Array, num_mels: int) -> jax.Array:
    """Full-band log-mel at 50 Hz, roughly zero mean and unit variance for unit-RMS audio.

    Args:
      wave: (B, S) float32 at 32 kHz, S a multiple of 640.
      num_mels: M.

    Returns:
      (B, S / 640, M) float32.
    """
    mel = log_mel_32k(wave, num_mels=num_mels, hop=640)
    return (jnp.swapaxes(mel, 1, 2) - LOG_MEL_MEAN) / LOG_MEL_STD


def _gelu(x: jax.Array) -> jax.Array:
    return nn.gelu(x, approximate=False)  # Whisper was trained with the exact form
