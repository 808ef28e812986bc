import jax
import jax.numpy as jnp
import numpy as np

from gac_jax.models.heads import FeatureHead, MelHead, TextAdapter
from tests.tiny import drawn, jit


def normals(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def test_mel_head_makes_four_frames_of_a_code(rng: np.random.Generator) -> None:
    head, embedding = MelHead(num_mels=10, width=8, depth=1), normals(rng, 2, 5, 6)
    valid = jnp.arange(20)[None] < jnp.asarray([[20], [12]])
    params = drawn(head.init, embedding, valid)
    mel = jit(head.apply)(params, embedding, valid)
    assert mel.shape == (2, 20, 10)
    assert np.ptp(mel.reshape(2, 5, 4, 10), axis=2).max() > 1e-2  # which are not all the same
    spoilt = jit(head.apply)(params, embedding.at[1, 3:].set(1e3), valid)
    np.testing.assert_allclose(spoilt[1, :12], mel[1, :12], atol=1e-5)


def test_mel_head_can_be_linear(rng: np.random.Generator) -> None:
    """Codes start out linear in the log-mel, and so may their inverse."""
    head, embedding = MelHead(num_mels=3, width=8, depth=1), normals(rng, 1, 2, 6)
    valid = jnp.ones((1, 8), bool)
    params = drawn(head.init, embedding, valid)
    without = jax.tree.map(jnp.copy, params)
    without["params"]["linear"] = jax.tree.map(jnp.zeros_like, params["params"]["linear"])
    kernel, bias = (np.asarray(params["params"]["linear"][n]) for n in ("kernel", "bias"))
    difference = head.apply(params, embedding, valid) - head.apply(without, embedding, valid)
    expected = (np.asarray(embedding) @ kernel + bias).reshape(1, 8, 3)
    np.testing.assert_allclose(difference, expected, atol=1e-5)


def test_feature_head_sees_one_frame_at_a_time(rng: np.random.Generator) -> None:
    head, embedding = FeatureHead(features=7, width=16), normals(rng, 1, 5, 6)
    params = drawn(head.init, embedding)
    found = jit(head.apply)(params, embedding)
    assert found.shape == (1, 5, 7)
    other = jit(head.apply)(params, embedding.at[0, 2].add(1.0))
    np.testing.assert_array_equal((other != found).any(axis=-1)[0], np.arange(5) == 2)


def test_the_adapter_s_vectors_have_the_size_of_words_and_none_is_blank_at_first(
    rng: np.random.Generator,
) -> None:
    embedding = jnp.asarray(5.0 + 3.0 * rng.standard_normal((2, 4, 12)), jnp.float32)
    adapter = TextAdapter(width=20)
    found, blank = adapter.apply(adapter.init(jax.random.key(0), embedding), embedding)
    assert found.shape == (2, 4, 20)
    np.testing.assert_allclose(np.square(found).mean(axis=-1), 1.0, rtol=1e-3)
    np.testing.assert_array_equal(blank, np.zeros((2, 4), np.float32))
