import math

import numpy as np
import pytest

from gac_jax.metrics.bootstrap import interval


def test_it_is_the_interval_of_a_mean(rng: np.random.Generator) -> None:
    values = rng.normal(5.0, 2.0, 400)
    low, high = interval(values)
    deviation = values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * deviation, abs=0.02)
    assert high == pytest.approx(values.mean() + 1.96 * deviation, abs=0.02)


def test_two_clips_by_hand() -> None:
    """Resampled means of 0 and 2 are 0, 1, 1 and 2 alike often, so 95 % of them reach all over."""
    assert interval(np.array([0.0, 2.0])) == (0.0, 2.0)
    assert interval(np.array([3.0, 3.0, 3.0])) == (3.0, 3.0)


def test_clips_keep_their_weights() -> None:
    values, weights = np.array([0.0, 10.0]), np.array([3.0, 1.0])
    assert interval(values, weights=weights) == (0.0, 10.0)
    many, alike = np.tile(values, 200), np.ones(400)
    low, high = interval(many, weights=np.tile(weights, 200))
    assert low < 2.5 < high < 4.0  # the weighted mean, not 5
    assert interval(many, weights=alike) == pytest.approx(interval(many))


def test_it_is_the_same_at_every_call(rng: np.random.Generator) -> None:
    values = rng.normal(size=9)
    assert interval(values) == interval(values) != interval(values, seed=1)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_one_clip_says_nothing_of_the_spread(values: list[float]) -> None:
    assert all(map(math.isnan, interval(np.array(values))))
