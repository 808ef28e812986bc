import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax.entropy_coder import EntropyCoder, frequencies, semantic_points
from gac_jax.models import entropy_model
from gac_jax.models.entropy_model import EntropyModelConfig
from gac_jax.training import entropy

CONFIG = EntropyModelConfig(width=16, code_dim=8, query_dim=8, feature_width=8, semantic_dim=4)
CODES = 50  # semantic ones
Weights = dict[str, np.ndarray]

GOLDEN = (
    "890d",
    [
        "0000000cceb9f8971ffe48493db00606dc15dabdeb01f3e397f3de08b274a928ce6672d307aeee9c6924"
        "aae999c13c9668d3370da52592402663115970007a38f5f0a13821bdf9a42e78d506e8ec3c",
        "0703a17f66f3518757eb4d13951998aaf3771e986faf7503717e1cd9ad83",
    ],
)


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Large, so that every code that the model sees changes much of what it expects."""
    drawn = entropy_model.init(CONFIG, jax.random.key(0))
    large = entropy_model.rounded({name: 2 * x for name, x in drawn.items()})
    return {name: np.asarray(x) for name, x in large.items()}


@pytest.fixture
def points(rng: np.random.Generator) -> np.ndarray:
    drawn = rng.standard_normal((CODES, 4))
    return entropy_model.integer_points(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def draw(rng: np.random.Generator, frames: int, num_residuals: int) -> np.ndarray:
    residual = rng.integers(0, 256, (num_residuals, frames))
    return np.concatenate([rng.integers(0, CODES, (1, frames)), residual]).astype(np.int32)


@pytest.mark.parametrize("num_residuals", [0, 3, 8])
def test_codes_come_back(
    weights: Weights, points: np.ndarray, num_residuals: int, rng: np.random.Generator
) -> None:
    coder = EntropyCoder(CONFIG, weights, points)
    chunks = [draw(rng, frames, num_residuals) for frames in (20, 1, 9)]
    data = list(coder.encode(chunks, num_residuals))
    frames = [chunk.shape[1] for chunk in chunks]
    decoded = list(coder.decode(zip(data, frames, strict=True), num_residuals))
    assert [codes.dtype for codes, _ in decoded] == [np.int32] * 3
    assert [again for _, again in decoded] == data
    for (codes, _), chunk in zip(decoded, chunks, strict=True):
        np.testing.assert_array_equal(codes, chunk)


@pytest.mark.parametrize("num_residuals", [0, 2, 8])
def test_a_file_costs_what_training_counts(
    weights: Weights, points: np.ndarray, num_residuals: int, rng: np.random.Generator
) -> None:
    """NumPy's walk through a clip and JAX' through a batch are the same model."""
    coder = EntropyCoder(CONFIG, weights, points)
    # Random bytes decode to codes that the model expects; others would cost more than 24 bits.
    ((likely, data),) = coder.decode([(rng.bytes(2_000), 48)], num_residuals)
    codes = draw(rng, 48, 8)
    codes[: 1 + num_residuals] = likely
    first = np.arange(48)[None] == 0
    batch = entropy.Batch(codes[None], first, np.array([num_residuals], np.int32))
    floats = {name: jnp.asarray(x) for name, x in weights.items()}
    counted = entropy.bits(floats, jnp.asarray(points), batch, 1, jnp.int32(0)).per_frame()
    assert 8 * len(data) == pytest.approx(48 * float(counted), abs=10)


def test_any_bytes_give_codes(
    weights: Weights, points: np.ndarray, rng: np.random.Generator
) -> None:
    coder = EntropyCoder(CONFIG, weights, points)
    for length in range(12):
        ((codes, _),) = coder.decode([(rng.bytes(length), 5)], 2)
        assert codes.shape == (3, 5) and codes.min() >= 0
        assert codes[0].max() < CODES and codes[1:].max() < 256


def test_the_digest_is_of_all_that_codes_depend_on(weights: Weights, points: np.ndarray) -> None:
    digest = EntropyCoder(CONFIG, weights, points).digest
    assert EntropyCoder(CONFIG, dict(reversed(weights.items())), points.copy()).digest == digest
    others = [EntropyCoder(CONFIG, weights, np.roll(points, 1)).digest]
    for name, array in weights.items():
        changed = array.copy()
        changed.flat[0] += 1
        others.append(EntropyCoder(CONFIG, {**weights, name: changed}, points).digest)
    assert len({digest, *others}) == 2 + len(weights)


def test_frequencies_are_powers_of_two() -> None:
    found = frequencies(np.array([0, -32, -16, -32 * 24, -32 * 25, -10_000], np.float32))
    half = math.floor(2**23.5)
    assert found.tolist() == [2**24 + 1, 2**23 + 1, half + 1, 2, 1, 1]


def test_points_are_rounded_unit_vectors(rng: np.random.Generator) -> None:
    quantizer = {
        "basis": rng.standard_normal((9, 4)).astype(np.float32),
        "basis_map": {"kernel": rng.standard_normal((4, 4)).astype(np.float32)},
    }
    points = semantic_points(quantizer)
    assert points.dtype == np.float32 and np.array_equal(points, np.round(points))
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 256, atol=1.5)
    assert math.isclose(
        points[0] @ (quantizer["basis"] @ quantizer["basis_map"]["kernel"])[0] / 256,
        np.linalg.norm((quantizer["basis"] @ quantizer["basis_map"]["kernel"])[0]),
        rel_tol=0.01,
    )


def test_files_of_other_machines_and_years_are_read() -> None:
    """The same bytes wherever this runs: nothing in them was drawn or rounded by a library."""
    small = EntropyModelConfig(8, 4, 4, 4, 2, num_residual=2, residual_size=16)

    def pattern(*shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        return (np.arange(count) * 7919 % 101 - 50).reshape(shape).astype(np.float32)

    weights = {name: pattern(*shape) for name, shape in entropy_model.shapes(small).items()}
    coder = EntropyCoder(small, weights, 3 * pattern(20, 2))
    place = np.arange(40)
    codes = np.stack([place * place % 20, place * 3 % 16, place * place % 7]).astype(np.int32)
    data = list(coder.encode([codes[:, :30], codes[:, 30:]], 2))
    assert (coder.digest.hex(), [x.hex() for x in data]) == GOLDEN
    (first, _), (second, _) = coder.decode(zip(data, (30, 10), strict=True), 2)
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), codes)
