from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax.models.quantizer import (
    Explained,
    Quantizer,
    QuantizerConfig,
    SemanticPoint,
    assign,
    masked_mean,
    rotate,
)
from gac_jax.stages.usage import information
from tests.tiny import drawn, jit

CONFIG = QuantizerConfig(
    width=12,
    semantic_size=64,
    semantic_dim=6,
    num_residual=4,
    residual_size=16,
    residual_dim=10,
    partials_dim=4,
    partials_place=1,
)
BUSINESS = np.array([[1] * 6 + [0] * 4, [0] * 6 + [1] * 4, *[[1] * 6 + [0] * 4] * 2])
FRAMES = jnp.asarray([9, 5], jnp.int32)
RATE = jnp.asarray([1, 3], jnp.int32)
VALID = jnp.arange(9)[None] < FRAMES[:, None]
assigned = jit(assign, static_argnums=3)


def normals(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


@pytest.fixture
def features(rng: np.random.Generator) -> tuple[jax.Array, jax.Array]:
    return normals(rng, 2, 9, 20), normals(rng, 2, 9, 10)


@pytest.fixture
def params(features: tuple[jax.Array, jax.Array]) -> Any:
    return drawn(Quantizer(CONFIG).init, *features, FRAMES, RATE)


def apply(params: Any, *arguments: jax.Array, method: str = "__call__") -> Any:
    run = jit(Quantizer(CONFIG).apply, static_argnames="method")
    return run(params, *arguments, method=method)


def nearest(x: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    distance = np.square(x[..., None, :].astype(np.float64) - codebook).sum(axis=-1)
    return distance.argmin(axis=-1)


def residual_books(params: Any) -> np.ndarray:
    return np.asarray(params["params"]["residual_codes"]) * BUSINESS[:, None]


def unit(x: Any) -> np.ndarray:
    return np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True)


def part(module: nn.Module, params: Any, name: str, *arguments: jax.Array) -> np.ndarray:
    return np.asarray(jit(module.apply)({"params": params["params"][name]}, *arguments, VALID))


def semantic_point(params: Any, semantic: jax.Array, acoustic: jax.Array) -> np.ndarray:
    return part(SemanticPoint(CONFIG), params, "semantic_in", semantic, acoustic)


def test_every_code_is_the_nearest(params: Any, features: tuple[jax.Array, jax.Array]) -> None:
    p = jax.tree.map(np.asarray, params["params"])

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ p[name]["kernel"] + p[name].get("bias", 0.0)

    acoustic = np.asarray(features[1])
    codebook = unit(linear("basis_map", p["basis"]))
    point = semantic_point(params, *features)
    first = nearest(point, codebook)
    expected = [first]
    meaning = linear("semantic_out", codebook[first])
    residual = acoustic.copy()
    residual[..., :6] -= part(Explained(CONFIG), params, "explained", jnp.asarray(meaning))
    for book, business in zip(residual_books(params), BUSINESS, strict=True):
        expected.append(nearest(residual * business, book))
        residual = residual - book[expected[-1]]
    found = apply(params, *features, FRAMES, RATE).codes
    assert found.shape == (2, 5, 9) and found.dtype == jnp.int32
    np.testing.assert_array_equal(found, np.stack(expected, axis=1))
    codes = apply(params, *features, FRAMES, method="codes")
    np.testing.assert_array_equal(codes, found)
    assert len(np.unique(found)) > 10  # not all the same code


@pytest.mark.parametrize("rate", [[0, 3], [1, 2]])
def test_the_receiver_s_embedding_is_the_one_of_training(
    params: Any, features: tuple[jax.Array, jax.Array], rate: list[int]
) -> None:
    quantized = apply(params, *features, FRAMES, jnp.asarray(rate))
    received = apply(params, quantized.codes, jnp.asarray(rate), method="embed")
    # The sums are of equal numbers; only the programs that XLA makes of them may differ.
    np.testing.assert_allclose(quantized.embedding, received, rtol=1e-6, atol=2e-6)


def test_codes_beyond_the_rate_are_ignored(
    params: Any, features: tuple[jax.Array, jax.Array]
) -> None:
    codes = apply(params, *features, FRAMES, RATE).codes
    rate = jnp.asarray([1, 2], jnp.int32)
    other = codes.at[0, 2:].set(0).at[1, 3:].set(0)
    assert (other != codes).any()
    embedding = apply(params, codes, rate, method="embed")
    np.testing.assert_array_equal(embedding, apply(params, other, rate, method="embed"))
    changed = apply(params, codes.at[:, 1].add(1) % 16, rate, method="embed")
    assert (changed != embedding).any(axis=-1).all()


def test_the_rate_is_a_prefix_of_the_residual_codebooks(
    params: Any, features: tuple[jax.Array, jax.Array]
) -> None:
    quantized = apply(params, *features, FRAMES, jnp.asarray([0, 2]))
    books = residual_books(params)
    points = books[0][quantized.codes[1, 1]] + books[1][quantized.codes[1, 2]]
    detail = points @ np.asarray(params["params"]["residual_out"]["kernel"])
    np.testing.assert_allclose(quantized.embedding[0], quantized.semantic[0], atol=1e-5)
    np.testing.assert_allclose(quantized.embedding[1], quantized.semantic[1] + detail, atol=1e-5)


def test_residuals_are_what_each_codebook_had_to_describe(
    params: Any, features: tuple[jax.Array, jax.Array]
) -> None:
    quantized = apply(params, *features, FRAMES, RATE)
    books = residual_books(params)
    partials, rest = np.asarray(quantized.residuals[1]), np.asarray(quantized.residuals[0])
    np.testing.assert_allclose(partials[..., 6:], features[1][..., 6:], atol=1e-6)
    assert not partials[..., :6].any()
    for before, after in ((0, 2), (2, 3)):
        rest = rest - books[before][quantized.codes[:, 1 + before]]
        np.testing.assert_allclose(quantized.residuals[after], rest, atol=1e-5)


def test_partials_are_told_by_one_codebook(
    params: Any, features: tuple[jax.Array, jax.Array]
) -> None:
    codes = apply(params, *features, FRAMES, RATE).codes
    told = apply(params, codes, jnp.asarray([1, 2]), method="partials")
    books = residual_books(params)
    assert not told[0].any()  # this rate ends before it
    np.testing.assert_allclose(told[1], books[1][codes[1, 2]][:, 6:], atol=1e-6)
    envelope = features[1].at[..., :6].add(1.0)
    other = apply(params, features[0], envelope, FRAMES, RATE).codes
    np.testing.assert_array_equal(other[:, 2], codes[:, 2])
    assert (other[:, 3] != codes[:, 3]).any()


def test_the_loss_is_that_of_the_semantic_code_and_of_what_it_explains(
    params: Any, features: tuple[jax.Array, jax.Array]
) -> None:
    quantized = apply(params, *features, FRAMES, RATE)
    book = unit(params["params"]["basis"] @ params["params"]["basis_map"]["kernel"])
    point = semantic_point(params, *features)
    first = assigned(jnp.asarray(point), jnp.asarray(book), VALID, CONFIG)
    unexplained, whole = (
        float(masked_mean(jnp.sum(jnp.square(x), axis=-1), VALID))
        for x in (quantized.residuals[0], features[1][..., :6])
    )
    assert float(quantized.loss) == pytest.approx(
        float(first.error) + unexplained / whole, rel=1e-4
    )


def test_no_loss_pulls_acoustic_features_towards_codes(
    params: Any, features: tuple[jax.Array, jax.Array]
) -> None:
    def loss(params: Any, acoustic: jax.Array) -> jax.Array:
        return Quantizer(CONFIG).apply(params, features[0], acoustic, FRAMES, RATE).loss

    to_params, to_acoustic = jit(jax.grad(loss, (0, 1)))(params, features[1])
    assert not to_acoustic.any()
    learns = to_params["params"]["explained"]["output"]["kernel"]
    assert learns.any()  # by regression


def test_exact_embeds_the_features_themselves(
    params: Any, features: tuple[jax.Array, jax.Array]
) -> None:
    """No code is between features and embedding: a small nudge moves it a little, everywhere."""

    def embed(semantic: jax.Array, acoustic: jax.Array, exact: bool) -> np.ndarray:
        run = jit(Quantizer(CONFIG).apply)
        rate = jnp.asarray([0, 3])
        return np.asarray(run(params, semantic, acoustic, FRAMES, rate, exact).embedding)

    nudged = [x + 1e-4 * jnp.sin(jnp.arange(x.size)).reshape(x.shape) for x in features]
    moved = np.abs(embed(*nudged, True) - embed(*features, True)).max(axis=-1)
    assert (moved > 0.0).all() and (moved < 1e-2).all()
    still = np.abs(embed(*nudged, False) - embed(*features, False)).max(axis=-1)
    assert (still[0] == 0.0).mean() > 0.5  # codes stay, or jump


def test_each_residual_codebook_brings_the_sum_closer(rng: np.random.Generator) -> None:
    x, valid = normals(rng, 2, 50, 12), jnp.ones((2, 50), bool)
    power = [float(jnp.sum(x**2))]
    for _ in range(3):  # codes drawn like the data itself; 0 is one, so no step may lose
        book = normals(rng, 64, 12).at[0].set(0.0)
        x = x - assigned(x, book, valid, CONFIG).points
        power.append(float(jnp.sum(x**2)))
    assert power[0] > power[1] > power[2] >= power[3]


def test_rotation_returns_the_code_to_the_last_bit(rng: np.random.Generator) -> None:
    x, target = normals(rng, 50, 32), 0.02 * normals(rng, 50, 32)
    np.testing.assert_array_equal(rotate(x, target), target)
    np.testing.assert_array_equal(jit(rotate)(x, target), target)


def test_gradient_of_rotation_is_a_rotation_and_a_scaling(rng: np.random.Generator) -> None:
    x, target = normals(rng, 8), 3.0 * normals(rng, 8)
    jacobian = np.asarray(jax.jacobian(rotate)(x, target))
    scale = np.linalg.norm(target) / np.linalg.norm(x)
    np.testing.assert_allclose(jacobian @ jacobian.T, scale**2 * np.eye(8), atol=1e-4)
    assert np.linalg.det(jacobian / scale) == pytest.approx(1.0, abs=1e-4)  # no reflection
    np.testing.assert_allclose(jacobian @ x, target, atol=1e-4)  # it takes x to its code
    # Directions at right angles to both are left alone.
    plane = np.linalg.qr(np.stack([x, target], axis=1))[0]
    aside = (np.eye(8) - plane @ plane.T) @ normals(rng, 8)
    np.testing.assert_allclose(jacobian @ aside, scale * aside, atol=1e-4)


def test_rotation_passes_no_gradient_to_the_code(rng: np.random.Generator) -> None:
    x, target = normals(rng, 4, 8), normals(rng, 4, 8)
    assert not jax.grad(lambda q: jnp.sum(rotate(x, q) ** 2))(target).any()


def test_rotation_of_degenerate_points_is_finite() -> None:
    x = jnp.asarray([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    target = jnp.asarray([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    value, pull = jax.vjp(lambda x: rotate(x, target), x)
    np.testing.assert_array_equal(value, target)
    assert np.isfinite(pull(jnp.ones_like(x))[0]).all()


def test_errors_are_mean_squares_over_valid_frames(rng: np.random.Generator) -> None:
    x, book = normals(rng, 2, 9, 4), normals(rng, 32, 4)
    found = assigned(x, book, VALID, CONFIG)
    points, keep = np.asarray(book)[found.codes], np.asarray(VALID)
    error = np.square(np.asarray(x) - points).sum(axis=-1)[keep].mean()
    assert float(found.error) == pytest.approx((1 + CONFIG.commitment) * error, rel=1e-5)


def test_codes_are_pulled_to_points_and_points_to_codes(rng: np.random.Generator) -> None:
    x, book = normals(rng, 1, 1, 4), normals(rng, 8, 4)
    valid = jnp.ones((1, 1), bool)

    def loss(x: jax.Array, book: jax.Array) -> jax.Array:
        return assign(x, book, valid, CONFIG).error

    to_x, to_book = jit(jax.grad(loss, (0, 1)))(x, book)
    code = int(assigned(x, book, valid, CONFIG).codes[0, 0])
    pull = 2.0 * (x[0, 0] - book[code])
    np.testing.assert_allclose(to_x[0, 0], CONFIG.commitment * pull, rtol=1e-4)
    np.testing.assert_allclose(to_book[code], -pull, rtol=1e-4)
    assert not np.delete(to_book, code, axis=0).any()


def test_the_embedding_passes_gradients_to_the_features_in_use(
    params: Any, features: tuple[jax.Array, jax.Array]
) -> None:
    """Through the residual codes as if they were exact, and not at all where none is used."""
    weight = jnp.asarray(np.random.default_rng(1).standard_normal((2, 9, 12)), jnp.float32)

    def pull(params: Any, acoustic: jax.Array) -> jax.Array:
        arguments = features[0], acoustic, FRAMES, jnp.asarray([0, 2])
        return jnp.sum(weight * Quantizer(CONFIG).apply(params, *arguments).embedding)

    p = params["params"]
    to_acoustic = jit(jax.grad(pull, 1))(params, features[1])
    assert not to_acoustic[0].any()
    straight = weight[1] @ p["residual_out"]["kernel"].T
    np.testing.assert_allclose(to_acoustic[1], straight, atol=1e-4)


def test_padding_counts_in_no_loss(params: Any, features: tuple[jax.Array, jax.Array]) -> None:
    def total(semantic: jax.Array, acoustic: jax.Array) -> jax.Array:
        q = Quantizer(CONFIG).apply(params, semantic, acoustic, FRAMES, RATE)
        usage = information(q.semantic_usage) + jnp.sum(information(q.residual_usage))
        return q.loss + q.confidence + usage

    value, gradients = jit(jax.value_and_grad(total, (0, 1)))(*features)
    for gradient in gradients:
        assert not gradient[1, 5:].any()
        assert gradient[1, :5].any(axis=-1).all() and gradient[0].any(axis=-1).all()
    spoilt = [x.at[1, 5:].add(7.0) for x in features]
    assert float(jit(total)(*spoilt)) == pytest.approx(float(value), rel=1e-5)


def test_usage_is_the_mean_softmax_of_standardised_distances(rng: np.random.Generator) -> None:
    x, book = normals(rng, 2, 9, 4), normals(rng, 32, 4)
    found = assigned(x, book, VALID, CONFIG)
    distance = np.square(np.asarray(x)[..., None, :] - np.asarray(book)).sum(axis=-1)
    distance -= distance.mean(axis=-1, keepdims=True)
    distance /= distance.std(axis=-1, keepdims=True)
    p = np.exp(-distance / CONFIG.temperature)
    p /= p.sum(axis=-1, keepdims=True)
    keep = np.asarray(VALID)
    np.testing.assert_allclose(found.usage, p[keep].mean(axis=0), atol=1e-5)
    entropy = -(p * np.log(p)).sum(axis=-1)[keep].mean()
    assert float(found.confidence) == pytest.approx(np.log(32) - entropy, rel=1e-4)


def test_confidence_is_log_size_for_sure_points_and_0_for_undecided_ones() -> None:
    book, valid = 100.0 * jnp.eye(16), jnp.ones((1, 16), bool)
    sure = assigned(book[None], book, valid, CONFIG).confidence
    undecided = assigned(jnp.zeros((1, 16, 16)), book, valid, CONFIG).confidence
    assert float(sure) == pytest.approx(np.log(16), rel=1e-3)
    assert float(undecided) == pytest.approx(0.0, abs=1e-3)


def test_descending_information_brings_unused_codes_into_play(rng: np.random.Generator) -> None:
    """Points lie around half of the codes; L_info's gradient must lead to the other half too."""
    book = 2.0 * normals(rng, 16, 6)
    x = book[None, jnp.arange(40) % 8] + 0.1 * normals(rng, 1, 40, 6)
    valid = jnp.ones((1, 40), bool)

    def usage(x: jax.Array) -> jax.Array:
        return assign(x, book, valid, CONFIG).usage

    gradient = jit(jax.grad(lambda x: information(usage(x))))
    before = usage(x)
    for _ in range(20):
        g = gradient(x)
        x = x - 2.0 * g / jnp.linalg.norm(g)
    after = usage(x)
    assert float(information(after)) < float(information(before))
    assert float(jnp.sum(after[8:])) > 2.0 * float(jnp.sum(before[8:]))


def test_only_the_map_of_the_basis_learns(
    params: Any, features: tuple[jax.Array, jax.Array]
) -> None:
    def loss(params: Any) -> jax.Array:
        q = Quantizer(CONFIG).apply(params, *features, FRAMES, RATE)
        return q.loss + information(q.semantic_usage) + jnp.sum(q.embedding**2)

    gradient = jit(jax.grad(loss))(params)["params"]
    assert not gradient.pop("basis").any()
    assert not gradient.pop("residual_codes").any()  # running means, see gac_jax.models.kmeans
    assert all(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_masked_mean_is_the_mean_over_valid_frames(rng: np.random.Generator) -> None:
    values = normals(rng, 2, 9, 4)
    found = masked_mean(values, VALID)
    np.testing.assert_allclose(found, np.asarray(values)[np.asarray(VALID)].mean(0), rtol=1e-5)
    assert not masked_mean(values, jnp.zeros_like(VALID)).any()


def test_defaults_are_the_published_codebooks() -> None:
    assert QuantizerConfig().semantic_size == 2**14
    assert (QuantizerConfig().num_residual, QuantizerConfig().residual_size) == (8, 2**8)
