import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax.models.neighbours import CHUNK, Neighbours, filter_nearby


def test_weights_are_polynomials_of_time(rng: np.random.Generator) -> None:
    """Against loops over a grid of half frames by bands, (4, 6), whose two groups differ."""
    weights = rng.standard_normal((4, 7, 5, 2)).astype(np.float32)
    x, t = rng.standard_normal((1, 2, 12)).astype(np.float32), 0.3
    grid, expected = x.reshape(4, 6), np.zeros((4, 6))
    kernel = np.einsum("p,pijg->ijg", t ** np.arange(4.0), weights)
    for row, band in np.ndindex(4, 6):
        for i, j in np.ndindex(7, 5):
            near = row + i - 3, band + j - 2
            if 0 <= near[0] < 4 and 0 <= near[1] < 6:
                expected[row, band] += kernel[i, j, band // 3] * grid[near]
    model = Neighbours(groups=2, halves=2)
    found = model.apply({"params": {"weights": weights}}, x, jnp.asarray([t]))
    np.testing.assert_allclose(found, expected.reshape(1, 2, 12), atol=1e-4)


@pytest.mark.parametrize("spectra", [4, CHUNK, CHUNK + 5])
def test_gradients_are_those_of_the_filter(rng: np.random.Generator, spectra: int) -> None:
    """It is linear in both: the gradient times a change is what the change makes of the output."""

    def normals(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    shapes = (3, spectra, 12), (3, 7, 5, 2)
    inputs, gradient = [normals(*shape) for shape in shapes], normals(*shapes[0])
    found = jax.jit(lambda *x: jax.vjp(filter_nearby, *x[:2])[1](x[2]))(*inputs, gradient)
    for i, shape in enumerate(shapes):
        change = normals(*shape)
        changed = [change if i == j else x for j, x in enumerate(inputs)]
        expected = jnp.vdot(gradient, filter_nearby(*changed))
        np.testing.assert_allclose(jnp.vdot(found[i], change), expected, atol=2e-3)
