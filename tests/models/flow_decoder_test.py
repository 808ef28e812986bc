import dataclasses
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax import flow
from gac_jax.models.encoder import EncoderConfig, Features
from gac_jax.models.flow_decoder import Condition, DecoderConfig, FlowDecoder, wiener
from gac_jax.stages.generation import init_decoder
from tests.tiny import drawn, jit, predict

CONFIG = DecoderConfig(width=32, depth=2, head_dim=16, bins=20)
CODES, CHANNELS = 6, 12
FRAMES = jnp.asarray([CODES, 4], jnp.int32)


@pytest.fixture(scope="module")
def params() -> Any:
    return drawn(lambda key: init_decoder(FlowDecoder(CONFIG), CHANNELS, key))


@pytest.fixture
def inputs(rng: np.random.Generator) -> dict[str, jax.Array]:
    def normals(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return {
        "x_t": normals(2, 4 * CODES, CONFIG.bins),
        "t": jnp.asarray([0.2, 0.7]),
        "embedding": normals(2, CODES, CHANNELS),
        "rate": jnp.asarray([1, 8], jnp.int32),
        "keep": jnp.asarray([True, True]),
        "lost": jnp.zeros((2, CODES), bool),
        "frames": FRAMES,
    }


def decode(params: Any, inputs: dict[str, jax.Array]) -> jax.Array:
    return predict(FlowDecoder(CONFIG), params, **inputs)


run = jit(decode)


@jit
def condition(params: Any, inputs: dict[str, jax.Array]) -> Condition:
    given = (inputs[name] for name in ("embedding", "rate", "keep", "lost", "frames"))
    return FlowDecoder(CONFIG).apply({"params": params}, *given, method="condition")


def size_of(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def decoder_size(config: Any) -> int:
    decoder = FlowDecoder(DecoderConfig(**config.decoder))
    shapes = jax.eval_shape(
        lambda key: init_decoder(decoder, config.quantizer.width, key), jax.random.key(0)
    )
    return size_of(shapes)


@pytest.mark.usefixtures("standard_promotion")  # Flax's norms widen bfloat16 unasked
@pytest.mark.parametrize(
    ("preset", "published"), [("small", 40.71e6), ("medium", 140.00e6), ("large", 493.10e6)]
)
def test_decoders_have_the_published_sizes(preset: str, published: float) -> None:
    config = importlib.import_module(f"configs.{preset}").get_config()
    assert decoder_size(config) == pytest.approx(published, rel=0.01)


@pytest.mark.usefixtures("standard_promotion")
def test_the_flagship_has_1_8_billion_parameters() -> None:
    config = importlib.import_module("configs.xl").get_config()
    features = Features(EncoderConfig(**config.encoder))
    wave, frames = jnp.zeros((1, 2560)), jnp.ones((1,), jnp.int32)
    encoder = jax.eval_shape(features.init, jax.random.key(0), wave, frames)
    assert size_of(encoder["params"]["semantic"]) == pytest.approx(637e6, rel=0.01)
    assert size_of(encoder) + decoder_size(config) == pytest.approx(1.8e9, rel=0.01)


def test_an_untrained_decoder_is_a_wiener_filter(params: Any, inputs: dict[str, jax.Array]) -> None:
    """It ends in a layer of zeros, and every block starts as the identity."""
    fresh = jit(lambda key: init_decoder(FlowDecoder(CONFIG), CHANNELS, key))(jax.random.key(0))
    t = inputs["t"][:, None, None]
    expected = inputs["x_t"] * t / (t**2 + (1 - t) ** 2)
    np.testing.assert_allclose(run(fresh, inputs), expected, rtol=1e-5)
    implied = condition(fresh, inputs)
    assert not implied.mean.any() and not implied.log_deviation.any()
    assert not fresh["blocks"]["modulation"]["affine"]["kernel"].any()
    named = {k: v for k, v in fresh.items() if k != "output"}
    assert all(leaf.any() for leaf in jax.tree.leaves(named["input"]["kernel"]))


def test_gaussian_data_need_no_network(rng: np.random.Generator) -> None:
    """Of X_1 and X_0 of unit variance, nothing linear in X_t predicts X_1 better."""
    x1, x0 = rng.standard_normal((2, 100_000))
    for t in (0.0, 0.3, 0.9):
        x_t = t * x1 + (1 - t) * x0
        skip, gain, size = (float(np.squeeze(x)) for x in wiener(*jnp.asarray([[t], [t]])))
        assert skip == pytest.approx(np.mean(x1 * x_t) / np.mean(x_t**2), abs=0.01)
        assert gain == pytest.approx(np.std(x1 - skip * x_t), abs=0.01)
        assert size == pytest.approx(np.std(x_t), abs=0.01)


@pytest.mark.parametrize(("t", "until"), [(0.0, 1.0), (0.1, 0.6), (0.5, 0.5001), (0.4, 0.4)])
def test_an_untrained_decoder_takes_gaussian_data_along_their_path(t: float, until: float) -> None:
    """Whatever the step, X_r has the deviation of X_r."""
    decoder = FlowDecoder(dataclasses.replace(CONFIG, interval=True))
    fresh = jit(lambda key: init_decoder(decoder, CHANNELS, key))(jax.random.key(0))
    x_t, times = jnp.ones((1, 4 * CODES, CONFIG.bins)), (jnp.asarray([t]), jnp.asarray([until]))
    implied = Condition(
        jnp.zeros((1, CODES, CONFIG.width)), jnp.zeros((1, 4 * CODES, CONFIG.width)), x_t, x_t
    )
    x1_hat = decoder.apply({"params": fresh}, x_t, times[0], implied, FRAMES[:1], times[1])
    landed = x_t + (until - t) * flow.velocity(x1_hat, x_t, times[0])
    size = np.hypot(until, 1 - until) / np.hypot(t, 1 - t)
    np.testing.assert_allclose(landed, size, rtol=1e-5)


def test_an_interval_matters_to_a_decoder_that_knows_them(inputs: dict[str, jax.Array]) -> None:
    decoder = FlowDecoder(dataclasses.replace(CONFIG, interval=True))
    params = drawn(lambda key: init_decoder(decoder, CHANNELS, key))
    names = ("embedding", "rate", "keep", "lost", "frames")
    given = (inputs[name] for name in names)
    implied = decoder.apply({"params": params}, *given, method="condition")

    def run(params: Any, until: jax.Array | None) -> jax.Array:
        return decoder.apply(
            {"params": params}, inputs["x_t"], inputs["t"], implied, inputs["frames"], until
        )

    at_once, later = run(params, None), run(params, inputs["t"] + 0.2)
    np.testing.assert_array_equal(at_once, run(params, inputs["t"]))
    # What the interval says is more than the change of the linear guess.
    silent = {**params, "interval_out": jax.tree.map(jnp.zeros_like, params["interval_out"])}
    heard = (later - at_once) - (run(silent, inputs["t"] + 0.2) - run(silent, None))
    assert (jnp.abs(heard).max(axis=(1, 2)) > 1e-3).all()


def test_output_has_the_shape_of_the_spectrum(params: Any, inputs: dict[str, jax.Array]) -> None:
    found = run(params, inputs)
    assert found.shape == inputs["x_t"].shape and found.dtype == jnp.float32
    assert np.abs(found).max() > 0.1


@pytest.mark.parametrize("name", ["x_t", "t", "embedding", "rate"])
def test_every_input_matters(params: Any, inputs: dict[str, jax.Array], name: str) -> None:
    other = {**inputs, name: inputs[name][::-1]}
    assert (jnp.abs(run(params, other) - run(params, inputs)).max(axis=(1, 2)) > 1e-3).all()


def test_rows_of_a_batch_do_not_mix(params: Any, inputs: dict[str, jax.Array]) -> None:
    backwards = {name: value[::-1] for name, value in inputs.items()}
    np.testing.assert_allclose(run(params, backwards)[::-1], run(params, inputs), atol=1e-4)


def test_padding_does_not_reach_valid_frames(params: Any, inputs: dict[str, jax.Array]) -> None:
    expected = run(params, inputs)
    spoilt = inputs["x_t"].at[1, 16:].set(1e3), inputs["embedding"].at[1, 4:].set(-1e3)
    found = run(params, {**inputs, "x_t": spoilt[0], "embedding": spoilt[1]})
    np.testing.assert_allclose(found[1, :16], expected[1, :16], atol=1e-4)
    alone = {name: value[1:] for name, value in inputs.items()}
    short = {"x_t": 16, "embedding": 4, "lost": 4}
    alone |= {name: alone[name][:, :length] for name, length in short.items()}
    np.testing.assert_allclose(expected[1, :16], run(params, alone)[0], atol=1e-4)


def test_no_gradient_reaches_padding(params: Any, inputs: dict[str, jax.Array]) -> None:
    def valid_part(x_t: jax.Array, embedding: jax.Array) -> jax.Array:
        found = decode(params, {**inputs, "x_t": x_t, "embedding": embedding})
        return jnp.sum(found[1, :16] ** 2)

    to_x, to_codes = jit(jax.grad(valid_part, (0, 1)))(inputs["x_t"], inputs["embedding"])
    assert not to_x[1, 16:].any() and not to_codes[1, 4:].any() and not to_x[0].any()
    assert to_x[1, :16].any(axis=-1).all() and to_codes[1, :4].any(axis=-1).all()


def test_without_condition_codes_and_rate_are_unseen(
    params: Any, inputs: dict[str, jax.Array]
) -> None:
    dropped = {**inputs, "keep": jnp.asarray([False, False])}
    other = {**dropped, "embedding": inputs["embedding"] + 3.0, "rate": inputs["rate"][::-1]}
    np.testing.assert_array_equal(run(params, other), run(params, dropped))
    assert (run(params, dropped) != run(params, inputs)).any(axis=(1, 2)).all()


def test_mean_and_deviation_know_the_codes_even_without_condition(
    params: Any, inputs: dict[str, jax.Array]
) -> None:
    """Guidance compares the branches in one space: how a spectrum strays from what is implied."""
    told = condition(params, inputs)
    untold = condition(params, {**inputs, "keep": jnp.asarray([False, False])})
    for name in ("mean", "log_deviation"):
        np.testing.assert_array_equal(getattr(untold, name), getattr(told, name))
        assert getattr(told, name).shape == inputs["x_t"].shape
        assert float(jnp.std(getattr(told, name))) > 0.1


def test_standardising_is_inverted(params: Any, inputs: dict[str, jax.Array]) -> None:
    told, spectrum = condition(params, inputs), inputs["x_t"]
    expected = (spectrum - told.mean) / jnp.exp(told.log_deviation)
    np.testing.assert_allclose(told.standardise(spectrum), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(told.spectrum(expected), spectrum, atol=1e-5)


def test_the_four_spectra_of_a_code_frame_are_told_apart(
    params: Any, inputs: dict[str, jax.Array]
) -> None:
    detail = condition(params, inputs).detail.reshape(2, CODES, 4, CONFIG.width)
    assert (jnp.abs(jnp.diff(detail, axis=2)).max(axis=-1) > 1e-3).all()


def test_codes_that_were_lost_are_unseen(params: Any, inputs: dict[str, jax.Array]) -> None:
    gone = {**inputs, "lost": inputs["lost"].at[:, 2].set(True)}
    other = {**gone, "embedding": inputs["embedding"].at[:, 2].add(3.0)}
    np.testing.assert_array_equal(run(params, other), run(params, gone))
    assert (run(params, gone) != run(params, inputs)).any(axis=(1, 2)).all()


def test_an_empty_row_is_finite(params: Any, inputs: dict[str, jax.Array]) -> None:
    def loss(params: Any) -> jax.Array:
        return jnp.sum(decode(params, {**inputs, "frames": jnp.asarray([6, 0])}) ** 2)

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jit(jax.grad(loss))(params)))


def test_recomputing_activations_changes_nothing(params: Any, inputs: dict[str, jax.Array]) -> None:
    def gradient(config: DecoderConfig) -> Any:
        def loss(params: Any) -> jax.Array:
            return jnp.mean(predict(FlowDecoder(config), params, **inputs) ** 2)

        return jit(jax.value_and_grad(loss))(params)

    plain, remat = gradient(CONFIG), gradient(dataclasses.replace(CONFIG, remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), plain, remat)


@pytest.mark.usefixtures("standard_promotion")
def test_bfloat16_matmuls_are_close_to_float32(params: Any, inputs: dict[str, jax.Array]) -> None:
    decoder = FlowDecoder(dataclasses.replace(CONFIG, dtype="bfloat16"))
    init = jax.eval_shape(lambda key: init_decoder(decoder, CHANNELS, key), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(init)} == {jnp.dtype("float32")}
    found = jit(lambda params: predict(decoder, params, **inputs))(params)
    expected = run(params, inputs)
    assert found.dtype == jnp.float32
    assert 0 < float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)) < 0.03
