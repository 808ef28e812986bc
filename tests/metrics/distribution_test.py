import math
import warnings

import numpy as np
import pytest
import scipy.linalg

from gac_jax.metrics.distribution import (
    frechet,
    frechet_infinity,
    inception_score,
    kl_divergence,
)


def with_moments(rng: np.random.Generator, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """200 points of exactly this mean and diagonal covariance."""
    x = rng.standard_normal((200, len(mean)))
    x -= x.mean(axis=0)
    root = np.linalg.cholesky(np.linalg.inv(np.cov(x, rowvar=False)))
    return (x @ root) * np.sqrt(variance) + mean


def by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """The formula as it is printed, with the root of a matrix."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(scipy.linalg.sqrtm(cov_a @ cov_b))
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root))


def test_frechet_in_one_dimension_by_hand() -> None:
    """Means 1 and 5, standard deviations sqrt(2) and 3 sqrt(2)."""
    reference, decoded = np.array([[0.0], [2.0]]), np.array([[2.0], [8.0]])
    assert frechet(reference, decoded) == pytest.approx(4.0**2 + 2 * (3 - 1) ** 2)


def test_frechet_of_diagonal_gaussians_is_a_closed_form(rng: np.random.Generator) -> None:
    a, b = np.array([1.0, 4.0, 0.25]), np.array([9.0, 4.0, 1.0])
    shift = np.array([1.0, -2.0, 0.5])
    expected = np.sum(shift**2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    sets = with_moments(rng, np.zeros(3), a), with_moments(rng, shift, b)
    assert frechet(*sets) == pytest.approx(expected)


def test_frechet_agrees_with_the_root_of_a_matrix(rng: np.random.Generator) -> None:
    a = rng.standard_normal((50, 8)) @ rng.standard_normal((8, 8))
    b = rng.standard_normal((70, 8)) @ rng.standard_normal((8, 8)) + 1
    assert frechet(a, b) == pytest.approx(by_definition(a, b))


def test_frechet_agrees_with_torch_fidelity() -> None:
    """Its 0.4.0 gives this of the same sets."""
    a = np.random.default_rng(1).standard_normal((40, 6))
    b = np.random.default_rng(2).standard_normal((30, 6)) * 2 + 1
    assert frechet(a, b) == pytest.approx(13.839081426405517)


@pytest.mark.parametrize("shape", [(200, 8), (5, 64)])
def test_frechet_of_equal_sets_is_zero(shape: tuple[int, int], rng: np.random.Generator) -> None:
    points = 100 + rng.standard_normal(shape)
    assert 0 <= frechet(points, points[::-1]) < 1e-9


def test_fewer_clips_than_dimensions(rng: np.random.Generator) -> None:
    """Dimensions that are zero in both sets change nothing; the root of a matrix fails here."""
    a, b = rng.standard_normal((4, 3)), 2 * rng.standard_normal((5, 3))
    wide = [np.pad(points, ((0, 0), (0, 60))) for points in (a, b)]
    assert frechet(*wide) == pytest.approx(frechet(a, b)) == pytest.approx(by_definition(a, b))


def test_frechet_needs_two_clips() -> None:
    assert math.isnan(frechet(np.ones((1, 4)), np.ones((3, 4))))


def test_frechet_infinity_undoes_the_bias_of_few_clips(rng: np.random.Generator) -> None:
    """Two samples of one Gaussian: the distance is 0, and 60 clips make it look large."""
    reference, decoded = rng.standard_normal((2, 60, 20))
    assert frechet(reference, decoded) > 3
    assert abs(frechet_infinity(reference, decoded)) < 1


def test_frechet_infinity_keeps_what_is_no_bias(rng: np.random.Generator) -> None:
    points = rng.standard_normal((60, 20))
    assert frechet_infinity(points, points) == pytest.approx(0.0, abs=1e-9)
    assert frechet_infinity(points, points + 1.0) == pytest.approx(20.0)


def test_frechet_infinity_needs_more_clips_than_dimensions(rng: np.random.Generator) -> None:
    points = rng.standard_normal((20, 20))
    assert math.isnan(frechet_infinity(points, points))


def test_kl_by_hand() -> None:
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    reference, decoded = np.log([p, q]), np.log([q, q])
    assert kl_divergence(reference, decoded) == pytest.approx(expected / 2)  # the second clip: 0


def test_kl_agrees_with_torch() -> None:
    """kl_div(log_softmax(decoded), softmax(reference), reduction="batchmean") gives this."""
    reference = np.random.default_rng(3).standard_normal((5, 4))
    decoded = np.random.default_rng(4).standard_normal((5, 4))
    assert kl_divergence(reference, decoded) == pytest.approx(0.947070435740095)


def test_kl_of_equal_logits_is_zero_however_sharp() -> None:
    logits = np.array([[0.0, 800.0, -800.0], [3.0, 3.0, 3.0]])
    assert kl_divergence(logits, logits) == 0.0
    assert math.isnan(kl_divergence(logits[:0], logits[:0]))


def test_inception_score_agrees_with_torch_fidelity() -> None:
    """Its 0.4.0 gives this of the same logits, in ten splits and with seed 2020."""
    logits = np.random.default_rng(0).standard_normal((25, 7)) * 3
    assert inception_score(logits) == pytest.approx(1.6913699666438156)


def test_inception_score_of_extremes() -> None:
    assert inception_score(np.zeros((30, 5))) == pytest.approx(1.0)  # nothing is clear
    assert inception_score(np.tile([50.0, 0.0], (30, 1))) == pytest.approx(1.0)  # nothing varies
    varied = np.eye(400) * 50  # all clear and all different: as many as there are in a split
    assert inception_score(varied) == pytest.approx(40.0)


def test_inception_score_needs_two_clips_a_split() -> None:
    logits = np.eye(20)
    assert math.isnan(inception_score(logits[:19]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert inception_score(logits) > 1
