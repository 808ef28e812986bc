import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax.signal.mdct import compand, expand, imdct, mdct

HOP = 640


def noise(rng: np.random.Generator, rows: int, frames: int) -> jax.Array:
    return jnp.asarray(rng.standard_normal((rows, frames * HOP)), jnp.float32)


def textbook_mdct(wave: np.ndarray) -> np.ndarray:
    """Windowed MDCT by its definition, in float64: frame t sees samples 640 t - 320 .. + 960."""
    n, k = np.arange(2 * HOP), np.arange(HOP)
    window = np.sin(np.pi * (n + 0.5) / (2 * HOP))
    # Time starts at a block's first sample, 320 samples into the window.
    phase = np.pi / HOP * np.outer(n - HOP // 2 + 0.5, k + 0.5)
    basis = np.sqrt(2 / HOP) * window[:, None] * np.cos(phase)
    starts = range(HOP // 2, len(wave) - 2 * HOP + 1, HOP)
    return np.stack([wave[start : start + 2 * HOP] @ basis for start in starts])


@pytest.mark.parametrize("frames", [1, 2, 3, 17])
def test_round_trip_is_exact_at_any_length(rng: np.random.Generator, frames: int) -> None:
    wave = noise(rng, 2, frames)
    coefficients = jax.jit(mdct)(wave)
    assert coefficients.shape == (2, frames, HOP) and coefficients.dtype == jnp.float32
    np.testing.assert_allclose(jax.jit(imdct)(coefficients), wave, atol=1e-5)


def test_inner_frames_are_the_textbook_mdct(rng: np.random.Generator) -> None:
    wave = noise(rng, 1, 8)
    expected = textbook_mdct(np.asarray(wave[0], np.float64))
    np.testing.assert_allclose(mdct(wave)[0, 1:-1], expected, atol=1e-5)


def test_the_transform_is_an_orthogonal_matrix() -> None:
    samples = 3 * HOP
    matrix = np.asarray(mdct(jnp.eye(samples))).reshape(samples, samples)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(samples), atol=1e-5)


def test_energy_is_kept(rng: np.random.Generator) -> None:
    wave = noise(rng, 3, 20)
    energy = np.sum(np.square(mdct(wave)), axis=(1, 2))
    np.testing.assert_allclose(energy, np.sum(np.square(wave), axis=1), rtol=1e-5)


def test_white_noise_stays_white(rng: np.random.Generator) -> None:
    coefficients = np.asarray(mdct(noise(rng, 20, 50))).reshape(1000, HOP)
    # 1,000 draws: a bin's variance is off by 4.5 % (1 sigma), neighbours correlate within 3.2 %.
    np.testing.assert_allclose(coefficients.var(axis=0), 1.0, atol=0.25)
    neighbours = np.mean(coefficients[:, 1:] * coefficients[:, :-1], axis=0)
    successors = np.mean(coefficients[1:] * coefficients[:-1], axis=0)
    assert np.abs(neighbours).max() < 0.17 and np.abs(successors).max() < 0.17


def test_a_tone_lands_in_its_bin() -> None:
    hertz, seconds = 1012.5, np.arange(20 * HOP) / 32_000  # bin 40: 25 Hz wide from 1,000 Hz
    wave = jnp.asarray(np.sin(2 * np.pi * hertz * seconds), jnp.float32)[None]
    energy = np.sum(np.square(mdct(wave)[0, 1:-1]), axis=0)
    assert energy.argmax() == 40 and energy[38:43].sum() > 0.99 * energy.sum()


@pytest.mark.parametrize("lengths", [[1, 4, 7, 11], [11, 2, 11, 3]])
def test_a_padded_row_equals_the_unpadded_row(rng: np.random.Generator, lengths: list[int]) -> None:
    wave = noise(rng, len(lengths), 11)
    valid = jnp.asarray(lengths, jnp.int32)
    coefficients = mdct(wave, valid)
    restored = imdct(coefficients, valid)
    for row, length in enumerate(lengths):
        alone = mdct(wave[row : row + 1, : length * HOP])
        # The matmul of a large batch sums in another order than that of a small one.
        np.testing.assert_allclose(coefficients[row, :length], alone[0], atol=5e-6)
        np.testing.assert_allclose(restored[row, : length * HOP], imdct(alone)[0], atol=5e-6)
        assert not coefficients[row, length:].any() and not restored[row, length * HOP :].any()


def test_at_equal_shapes_a_row_depends_on_nothing_beyond_it(rng: np.random.Generator) -> None:
    wave, valid = noise(rng, 3, 6), jnp.asarray([6, 4, 1], jnp.int32)
    other = noise(rng, 3, 6).at[1, : 4 * HOP].set(wave[1, : 4 * HOP])
    first, second = mdct(wave, valid), mdct(other, jnp.asarray([1, 4, 6], jnp.int32))
    np.testing.assert_array_equal(first[1], second[1])
    np.testing.assert_array_equal(
        imdct(first, valid)[1], imdct(second, jnp.asarray([1, 4, 6], jnp.int32))[1]
    )


def test_garbage_beyond_the_valid_frames_does_no_harm(rng: np.random.Generator) -> None:
    wave = noise(rng, 1, 6)
    spoilt = wave.at[:, 4 * HOP :].set(jnp.nan)
    valid = jnp.asarray([4], jnp.int32)
    np.testing.assert_array_equal(mdct(spoilt, valid), mdct(wave, valid))
    restored = imdct(mdct(spoilt, valid), valid)
    np.testing.assert_allclose(restored[:, : 4 * HOP], wave[:, : 4 * HOP], atol=1e-5)


def test_row_lengths_may_be_traced(rng: np.random.Generator) -> None:
    wave, valid = noise(rng, 2, 5), jnp.asarray([5, 2], jnp.int32)
    np.testing.assert_allclose(jax.jit(mdct)(wave, valid), mdct(wave, valid), atol=1e-5)


@pytest.mark.parametrize("exponent", [0.4, 0.5, 1.0])
def test_expand_inverts_compand(rng: np.random.Generator, exponent: float) -> None:
    values = jnp.asarray(rng.standard_normal(1000) * 10.0 ** rng.uniform(-4, 2, 1000), jnp.float32)
    restored = expand(compand(values, exponent), exponent)
    np.testing.assert_allclose(restored, values, rtol=1e-5)


def test_compand_raises_the_magnitude_and_keeps_the_sign() -> None:
    values = jnp.asarray([-32.0, -1.0, 0.0, 1.0, 32.0])
    np.testing.assert_allclose(compand(values), [-4.0, -1.0, 0.0, 1.0, 4.0], rtol=1e-6)


def test_the_gradient_of_compand_is_finite_everywhere() -> None:
    values = jnp.asarray([0.0, -0.0, 1e-45, -1e-38, 1e-30, 1.0, -2.0])
    gradient = jax.grad(lambda v: jnp.sum(compand(v)))(values)
    assert np.isfinite(gradient).all() and not gradient[:2].any()
    np.testing.assert_allclose(gradient[5], 0.4, rtol=1e-6)
