import jax
import jax.numpy as jnp
import numpy as np

from gac_jax.models.kmeans import Means, centroids, start_means, update_means

KEY = jax.random.key(0)


def test_starting_codebooks_are_their_own_centroids(rng: np.random.Generator) -> None:
    books = jnp.asarray(rng.standard_normal((2, 4, 3)), jnp.float32)
    np.testing.assert_allclose(centroids(start_means(books)), books, rtol=1e-6)


def test_codes_are_running_means_of_their_valid_points() -> None:
    means = Means(jnp.ones((1, 2)), jnp.asarray([[[1.0], [-1.0]]]))
    points = jnp.asarray([[[[3.0], [5.0], [-2.0], [100.0]]]])
    codes = jnp.asarray([[[0, 0, 1, 1]]])
    valid = jnp.asarray([[True, True, True, False]])
    new = update_means(means, points, codes, valid, KEY, decay=0.5)
    np.testing.assert_allclose(new.counts, [[0.5 + 1.0, 0.5 + 0.5]])
    np.testing.assert_allclose(centroids(new)[0, :, 0], [(0.5 + 4.0) / 1.5, (-0.5 - 1.0) / 1.0])


def test_a_dead_code_is_drawn_anew_from_valid_points() -> None:
    means = start_means(jnp.asarray([[[0.0], [50.0]]]))
    points = jnp.asarray([[[[1.0], [2.0], [99.0]]]])
    codes = jnp.zeros((1, 1, 3), jnp.int32)
    valid = jnp.asarray([[True, True, False]])
    for i in range(200):
        key = jax.random.fold_in(KEY, i)
        means = update_means(means, points, codes, valid, key, decay=0.9)
        if abs(float(centroids(means)[0, 1, 0]) - 50.0) > 1.0:
            break
    assert 2 < i < 60  # it is given some time, not for ever
    assert min(abs(float(centroids(means)[0, 1, 0]) - x) for x in (1.0, 2.0)) < 1e-4
    assert float(means.counts[0, 1]) > 0.1 * float(means.counts[0, 0])  # and it may stay a while


def test_a_batch_without_valid_points_changes_nothing(rng: np.random.Generator) -> None:
    means = start_means(jnp.asarray(rng.standard_normal((2, 4, 3)), jnp.float32))
    points, codes = jnp.ones((2, 1, 5, 3)), jnp.zeros((2, 1, 5), jnp.int32)
    new = update_means(means, points, codes, jnp.zeros((1, 5), bool), KEY, decay=0.9)
    for a, b in zip(new, means, strict=True):
        np.testing.assert_array_equal(a, b)


def test_all_codes_come_into_use_on_clustered_data(rng: np.random.Generator) -> None:
    """Out of one crowded corner, as after a collapse."""
    centres = 10.0 * rng.standard_normal((16, 4))
    means = start_means(jnp.asarray(0.01 * rng.standard_normal((1, 16, 4)), jnp.float32))
    update = jax.jit(update_means, static_argnames="decay")
    for i in range(300):
        x = (centres[rng.integers(16, size=128)] + 0.1 * rng.standard_normal((128, 4)))[None]
        distance = np.square(x[:, :, None] - np.asarray(centroids(means))).sum(-1)
        codes = jnp.asarray(distance.argmin(-1)[None], jnp.int32)
        points = jnp.asarray(x[None], jnp.float32)
        key = jax.random.fold_in(KEY, i)
        means = update(means, points, codes, jnp.ones((1, 128), bool), key, decay=0.95)
    assert len(np.unique(codes)) >= 15
    assert distance.min(-1).mean() < 0.2 * np.square(x).sum(-1).mean()
