import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax.models import critic as module
from gac_jax.models.critic import Critic, CriticConfig
from tests.tiny import drawn, jit

CRITIC = Critic(CriticConfig(widths=(8, 8, 8)))
ROWS = jax.random.normal(jax.random.key(0), (3, 8, 640))


@pytest.fixture(scope="module")
def variables() -> dict:
    return drawn(CRITIC.init, ROWS, ROWS)


def test_every_layer_halves_time_and_frequency(variables: dict) -> None:
    outputs = jit(CRITIC.apply)(variables, ROWS, ROWS)
    assert [x.shape for x in outputs] == [
        (3, 8, 160, 8),
        (3, 4, 80, 8),
        (3, 2, 40, 8),
        (3, 2, 40, 1),
    ]
    assert all(x.dtype == jnp.float32 for x in outputs)


def test_a_layer_is_a_convolution() -> None:
    x = jax.random.normal(jax.random.key(1), (2, 6, 8, 3))
    kernel = jax.random.normal(jax.random.key(2), (4, 4, 3, 5))
    expected = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    found = module._patches(x) @ kernel.reshape(48, 5)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_scores_depend_on_spectrum_expectation_and_place(variables: dict) -> None:
    def scores(spectrum: jax.Array, expected: jax.Array) -> np.ndarray:
        return np.asarray(jit(CRITIC.apply)(variables, spectrum, expected)[-1])

    base = scores(ROWS, ROWS)
    assert np.abs(scores(ROWS + 1.0, ROWS) - base).min() > 1e-4
    assert np.abs(scores(ROWS, ROWS + 1.0) - base).min() > 1e-4
    flat = scores(jnp.zeros_like(ROWS), jnp.zeros_like(ROWS))
    assert np.ptp(flat[0, 1, 2:-2]) > 1e-4  # the same everywhere but for where it is


def test_a_score_sees_a_patch(variables: dict) -> None:
    """22 spectra and bands for three layers: a change farther away changes nothing."""
    changed = ROWS.at[:, 7:, 320:].add(1.0)  # the very last spectrum
    before, after = (jit(CRITIC.apply)(variables, x, ROWS)[-1] for x in (ROWS, changed))
    np.testing.assert_array_equal(before[:, 0], after[:, 0])
    assert np.abs(np.asarray(before - after)[:, 1]).max() > 1e-4
