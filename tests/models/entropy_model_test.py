import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax.models import entropy_model
from gac_jax.models.entropy_model import LARGEST, ONE, EntropyModelConfig
from gac_jax.rates import MAX_RESIDUAL

CONFIG = EntropyModelConfig()
EXACT = 2**24  # below it float32 holds every whole number
Weights = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def weights() -> Weights:
    drawn = entropy_model.rounded(entropy_model.init(CONFIG, jax.random.key(0)))
    return {name: np.asarray(x) for name, x in drawn.items()}


def whole(rng: np.random.Generator, low: int, high: int, *shape: int) -> np.ndarray:
    return rng.integers(low, high + 1, shape).astype(np.float32)


def inputs(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, ...]:
    """State, point, embeddings, rate."""
    rate = np.eye(MAX_RESIDUAL + 2, dtype=np.float32)[rng.integers(0, MAX_RESIDUAL + 2, rows)]
    return (
        whole(rng, -ONE, ONE, rows, CONFIG.width),
        whole(rng, -100, 100, rows, CONFIG.semantic_dim),
        whole(rng, -8 * LARGEST, 8 * LARGEST, rows, CONFIG.code_dim),
        ONE * rate,
    )


def everything(weights: Weights, given: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    """All that the model computes of some inputs."""
    state, point, codes, _ = given
    features, keys = entropy_model.features(weights, point)
    context = entropy_model.context(weights, state, features)
    return [
        entropy_model.advance(weights, *given),
        entropy_model.semantic_logits(weights, keys, state),
        *(entropy_model.residual_logits(weights, context, codes, i) for i in (0, 7)),
    ]


def test_numpy_and_jax_agree_in_every_bit(weights: Weights, rng: np.random.Generator) -> None:
    given = inputs(rng, 300)
    with jax.default_matmul_precision("float32"):
        traced = jax.jit(everything)(weights, given)
    for one, other in zip(everything(weights, given), traced, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one, np.round(one))


def test_nothing_depends_on_the_order_of_a_sum(weights: Weights, rng: np.random.Generator) -> None:
    given = inputs(rng, 50)
    order = rng.permutation(CONFIG.width)
    gates = np.concatenate([order + i * CONFIG.width for i in range(3)])
    shuffled = {
        **weights,
        "input": weights["input"][:, gates],
        "state": weights["state"][order][:, gates],
    }
    state = entropy_model.advance(weights, *given)
    moved = entropy_model.advance(shuffled, given[0][:, order], *given[1:])
    np.testing.assert_array_equal(moved, state[:, order])


def test_no_sum_can_leave_what_is_exact() -> None:
    """With every weight and every input as large as it gets, and of the signs that hurt."""
    shapes = entropy_model.shapes(CONFIG)
    codes = CONFIG.num_residual * LARGEST * CONFIG.code_dim
    points = 256 * np.sqrt(CONFIG.semantic_dim)  # of a vector of length 256
    rows = {
        "input": points + codes + ONE + CONFIG.width * ONE,  # with what the state adds
        "feature": points + ONE,
        "key": CONFIG.feature_width * (2 * ONE - 1),
        "query": (CONFIG.width + 1) * ONE,
        "from_state": CONFIG.width * ONE + points + CONFIG.feature_width * (2 * ONE - 1) + codes,
        "residual_query": CONFIG.width * (2 * ONE - 1),
        "codes": CONFIG.code_dim * LARGEST,
    }
    assert rows.keys() <= shapes.keys()
    for name, size in rows.items():
        assert LARGEST * size + ONE * LARGEST + 256 < EXACT, name  # with a half to round by


def test_states_and_queries_are_bounded(weights: Weights, rng: np.random.Generator) -> None:
    state, *rest = inputs(rng, 200)
    for _ in range(3):
        state = entropy_model.advance(weights, state, *rest)
        assert np.abs(state).max() <= ONE
    features, keys = entropy_model.features(weights, rest[0])
    assert np.abs(keys).max() <= LARGEST
    found = features[:, CONFIG.semantic_dim :]
    assert found.min() >= 0 and found.max() <= 2 * ONE - 1 and found.std() > 0


def test_a_state_that_is_kept_stays(weights: Weights, rng: np.random.Generator) -> None:
    state, point, codes, rate = inputs(rng, 20)
    keeping = {name: np.zeros_like(x) for name, x in weights.items()}
    keeping["input"][-MAX_RESIDUAL - 2 :, : CONFIG.width] = LARGEST  # z = 1
    advanced = entropy_model.advance(keeping, state, 0 * point, 0 * codes, rate)
    np.testing.assert_array_equal(advanced, state)


def test_gradients_reach_every_weight(rng: np.random.Generator) -> None:
    given = inputs(rng, 40)

    def loss(real: Weights) -> jax.Array:
        found = everything(entropy_model.rounded(real), tuple(map(jnp.asarray, given)))
        return sum(jnp.mean(jax.nn.log_softmax(x / 32)[:, 0]) for x in found)

    gradients = jax.grad(loss)(entropy_model.init(CONFIG, jax.random.key(1)))
    assert gradients.keys() == entropy_model.shapes(CONFIG).keys()
    assert all(np.isfinite(x).all() and np.any(x) for x in gradients.values())


def test_rounded_weights_are_whole_and_bounded() -> None:
    real = {"input": jnp.array([0.0, 0.009, 1.0, -9.0]), "codes": jnp.array([1.0, 0.0, 9.0, -1.0])}
    found = {name: x.tolist() for name, x in entropy_model.rounded(real).items()}
    assert found == {"input": [0, 1, 64, -127], "codes": [32, 0, 127, -32]}
