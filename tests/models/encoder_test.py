import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax.models.encoder import (
    LOG_MEL_STD,
    POOL,
    RIPPLE_WEIGHT,
    EncoderConfig,
    Features,
    WhisperEncoder,
    normalised_log_mel,
)
from gac_jax.rates import FRAME_SAMPLES, SAMPLE_RATE
from gac_jax.signal import pitch
from gac_jax.signal.cepstrum import cepstrum, ripples
from gac_jax.signal.log_spectrum import log_spectrum, partials
from tests.tiny import ENCODER, batch, drawn, jit


@pytest.fixture(scope="module")
def params() -> Any:
    wave, frames = jnp.zeros((1, FRAME_SAMPLES)), jnp.ones((1,), jnp.int32)
    return drawn(Features(ENCODER).init, wave, frames)["params"]


@jit
def describe(params: Any, wave: jax.Array, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    return Features(ENCODER).apply({"params": params}, wave, frames)


def test_features_come_at_the_code_rate(params: Any) -> None:
    semantic, acoustic = describe(params, batch(rows=2)["wave"], jnp.asarray([4, 4]))
    assert semantic.shape == (2, 4, POOL * ENCODER.width)
    features = ENCODER.acoustic_features + ENCODER.ripple_features + pitch.FEATURES
    assert acoustic.shape == (2, 4, features)
    assert semantic.dtype == acoustic.dtype == jnp.float32


def test_features_do_not_depend_on_the_amount_of_padding(params: Any) -> None:
    wave, frames = batch(rows=2, frames=4)["wave"], jnp.asarray([4, 4])
    less, more = (jnp.pad(wave, ((0, 0), (0, n * FRAME_SAMPLES))) for n in (2, 4))
    for a, b in zip(describe(params, less, frames), describe(params, more, frames), strict=True):
        np.testing.assert_allclose(a[:, :4], b[:, :4], atol=1e-4)


def test_rows_of_a_batch_do_not_mix(params: Any) -> None:
    wave, frames = batch(rows=3)["wave"], jnp.asarray([4, 3, 2])
    together = describe(params, wave, frames)
    for a, b in zip(together, describe(params, wave[::-1], frames[::-1]), strict=True):
        np.testing.assert_allclose(a, b[::-1], atol=1e-4)


def test_only_the_acoustic_feature_hears_above_8_khz(params: Any) -> None:
    wave, frames = batch(rows=1)["wave"], jnp.asarray([4])
    seconds = jnp.arange(wave.shape[1]) / SAMPLE_RATE
    bright = wave + 0.3 * jnp.sin(2 * jnp.pi * 12_000 * seconds)[None]
    (semantic, acoustic), (semantic_2, acoustic_2) = (
        describe(params, w, frames) for w in (wave, bright)
    )
    np.testing.assert_allclose(semantic_2, semantic, atol=0.02)
    assert np.abs(acoustic_2 - acoustic).max() > 0.1


def test_padding_does_not_reach_the_whisper_tower(rng: np.random.Generator) -> None:
    tower, valid = WhisperEncoder(ENCODER), jnp.arange(10)[None] < 6
    mel = jnp.asarray(rng.standard_normal((1, 80, 20)), jnp.float32)
    params = drawn(tower.init, mel, valid)

    def valid_part(mel: jax.Array) -> jax.Array:
        return jnp.sum(tower.apply(params, mel, valid)[:, :6] ** 3)

    reach = np.asarray(jit(jax.grad(valid_part))(mel)).any(axis=(0, 1))
    # Two mel frames make one feature; the convolutions look two mel frames further, and no more.
    np.testing.assert_array_equal(reach, np.arange(20) < 6 * 2 + 1)


def test_the_acoustic_feature_starts_as_cepstrum_ripples_and_pitch(params: Any) -> None:
    tower = dict(params["acoustic"])
    tower["output"] = jax.tree.map(jnp.zeros_like, tower["output"])
    untrained = {**params, "acoustic": tower}
    wave = batch(rows=2)["wave"]
    found = describe(untrained, wave, jnp.asarray([4, 4]))[1]
    mel = normalised_log_mel(wave, ENCODER.acoustic_mels)
    np.testing.assert_allclose(
        found[..., : ENCODER.acoustic_features],
        cepstrum(mel, 4, ENCODER.acoustic_features),
        atol=1e-4,
    )
    fine = partials(log_spectrum(wave)) * (2.0 / LOG_MEL_STD)
    np.testing.assert_allclose(
        found[..., ENCODER.acoustic_features : -pitch.FEATURES],
        RIPPLE_WEIGHT * ripples(fine, 8, ENCODER.ripple_features),
        atol=1e-4,
    )
    level = partials(log_spectrum(wave))
    voice = pitch.to_features(pitch.track(level, jnp.ones(level.shape[:2], bool)), 8)
    np.testing.assert_allclose(found[..., -pitch.FEATURES :], voice, atol=1e-4)


def test_without_blocks_nothing_is_added_to_the_cepstrum() -> None:
    bare = Features(dataclasses.replace(ENCODER, acoustic_depth=0))
    wave, frames = batch(rows=2)["wave"], jnp.asarray([4, 4])
    params = drawn(bare.init, wave, frames)["params"]
    assert params.keys() == {"semantic"}
    found = jit(bare.apply)({"params": params}, wave, frames)[1][..., : ENCODER.acoustic_features]
    mel = normalised_log_mel(wave, ENCODER.acoustic_mels)
    np.testing.assert_allclose(found, cepstrum(mel, 4, ENCODER.acoustic_features), atol=1e-4)


def test_padding_does_not_reach_the_acoustic_feature(params: Any) -> None:
    wave, frames = batch(rows=1)["wave"], jnp.asarray([2])

    def valid_part(wave: jax.Array) -> jax.Array:
        return jnp.sum(Features(ENCODER).apply({"params": params}, wave, frames)[1][:, :2] ** 2)

    gradient = jit(jax.grad(valid_part))(wave)
    # The window of the last valid fine spectrum is 40 ms long, and centred 5 ms before the end.
    assert not gradient[0, 2 * FRAME_SAMPLES + 640 - 160 :].any()
    assert gradient[0, : 2 * FRAME_SAMPLES].any()


def test_silence_and_empty_rows_are_finite(params: Any) -> None:
    wave, frames = jnp.zeros((2, 2 * FRAME_SAMPLES)), jnp.asarray([2, 0])

    def loss(params: Any) -> jax.Array:
        return sum(jnp.sum(x**2) for x in Features(ENCODER).apply({"params": params}, wave, frames))

    gradient = jit(jax.grad(loss))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def gradient(config: EncoderConfig, params: Any) -> Any:
    wave, frames = batch(rows=2, frames=2)["wave"], jnp.asarray([2, 1])

    def loss(params: Any) -> jax.Array:
        return sum(jnp.mean(x**2) for x in Features(config).apply({"params": params}, wave, frames))

    return jit(jax.value_and_grad(loss))(params)


def test_recomputing_activations_changes_nothing(params: Any) -> None:
    plain = gradient(ENCODER, params)
    remat = gradient(dataclasses.replace(ENCODER, remat=True), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), plain, remat)


@pytest.mark.usefixtures("standard_promotion")  # Flax's norms widen bfloat16 unasked
def test_bfloat16_matmuls_are_close_to_float32(params: Any) -> None:
    features = Features(dataclasses.replace(ENCODER, dtype="bfloat16"))
    wave, frames = batch(rows=2)["wave"], jnp.asarray([4, 3])
    found = jit(features.apply)({"params": params}, wave, frames)
    for a, b in zip(found, describe(params, wave, frames), strict=True):
        assert a.dtype == jnp.float32
        assert 0 < float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) < 0.03


def test_log_mel_of_unit_noise_is_in_the_networks_range(rng: np.random.Generator) -> None:
    wave = jnp.asarray(rng.standard_normal((2, 20 * 640)), jnp.float32)
    mel = normalised_log_mel(wave, 32)
    assert mel.shape == (2, 20, 32)
    # 0 dB in every band; the log of a few averaged bins lies a little below that.
    assert 0.7 < float(mel.mean()) < 1.0
    louder = normalised_log_mel(np.e**2 * wave, 32)
    np.testing.assert_allclose(louder - mel, 1.0, atol=1e-4)  # 4 nepers of power are one unit
