import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax.bitstream import Tokens
from gac_jax.data import tokens as token_data
from gac_jax.data.sources import Clip
from gac_jax.data.tokens import Outcome, TokenSource
from gac_jax.errors import UserError
from gac_jax.models import entropy_model
from gac_jax.models.entropy_model import EntropyModelConfig
from gac_jax.training import entropy
from tests import token_sets

CONFIG = EntropyModelConfig(width=16, code_dim=8, query_dim=8, feature_width=8, semantic_dim=4)
SEMANTIC = 64  # codes that occur


def clip_of(codes: np.ndarray) -> Tokens:
    levels = np.full(-(-codes.shape[1] // 128), 200, np.uint8)
    return Tokens(codes, codes.shape[1] * 2560, levels, token_sets.FINGERPRINT)


@pytest.fixture
def source(tmp_path: Path, rng: np.random.Generator) -> TokenSource:
    """Forty clips: a code is the one before plus 1, and tells all residual codes of its frame."""
    about = token_sets.about(40)
    token_data.begin(tmp_path / "set", about)
    outcomes = []
    for index in range(40):
        semantic = (rng.integers(SEMANTIC) + np.arange(rng.integers(20, 90))) % SEMANTIC
        codes = np.stack([semantic, *(semantic + place for place in range(8))])
        clip = Clip(path=f"{index}.wav", domain="speech")
        outcomes.append(Outcome(clip, clip_of(codes), ""))
    token_data.write_shard(tmp_path / "set", about, 0, outcomes)
    return TokenSource(tmp_path / "set")


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    drawn = rng.standard_normal(shape)
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def test_rows_are_clips_end_to_end(source: TokenSource) -> None:
    rows = list(itertools.islice(entropy.rows(source, [3, 5, 8], 0), 30))
    lengths = {source[i].tokens.num_frames for i in (3, 5, 8)}
    codes = np.concatenate([codes for codes, _ in rows], axis=1)
    assert all(first[0] for _, first in rows)
    steps = np.diff(codes[0].astype(int)) % SEMANTIC != 1  # what no clip does within itself
    first = np.concatenate([first for _, first in rows])[1:]
    assert (first[steps]).all()
    ends = np.flatnonzero(steps) + 1
    assert set(np.diff(ends)) <= {sum(x) for n in (1, 2, 3) for x in itertools.combinations(
        sorted(lengths) * 2, n)}  # fmt: skip
    assert rows[0][0].shape == (9, entropy.ROW_FRAMES)


def test_clips_know_nothing_of_those_before(rng: np.random.Generator) -> None:
    real = entropy_model.init(CONFIG, jax.random.key(0))
    weights = entropy_model.rounded(real)
    points = jnp.asarray(entropy_model.integer_points(unit(rng, SEMANTIC, 4)))
    codes = rng.integers(0, SEMANTIC, (2, 9, 128))
    codes[1, :, 40:] = codes[0, :, 40:]
    first = np.isin(np.arange(128), [0, 40])[None].repeat(2, 0)
    batch = entropy.Batch(codes, first, np.array([3, 3], np.int32))
    found = entropy.bits(weights, points, batch, 1, jnp.int32(0))
    for costs in (found.semantic, jnp.moveaxis(found.residual, 1, 2)):
        np.testing.assert_array_equal(costs[0, 40:], costs[1, 40:])
        assert (costs[0, :40] != costs[1, :40]).any()
    assert not found.residual[:, 3:].any() and found.residual[:, :3].all()


def test_a_part_of_the_frames_stands_for_all(rng: np.random.Generator) -> None:
    weights = entropy_model.rounded(entropy_model.init(CONFIG, jax.random.key(0)))
    points = jnp.asarray(entropy_model.integer_points(unit(rng, SEMANTIC, 4)))
    codes = rng.integers(0, SEMANTIC, (2, 9, 128))
    first = np.arange(128)[None].repeat(2, 0) == 0
    batch = entropy.Batch(codes, first, np.array([0, 8], np.int32))
    whole = entropy.bits(weights, points, batch, 1, jnp.int32(0)).semantic
    for offset in range(4):
        part = entropy.bits(weights, points, batch, 4, jnp.int32(offset)).semantic
        np.testing.assert_allclose(part, whole[:, offset::4], rtol=1e-5)


@pytest.mark.usefixtures("standard_promotion")
def test_it_learns_what_follows_what(
    source: TokenSource, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    quantizer = {
        "basis": unit(rng, 2**10, 12).astype(np.float32),
        "basis_map": {"kernel": np.eye(12, dtype=np.float32)},
        "residual_codes": rng.standard_normal((8, 256, 20)).astype(np.float32),
    }
    weights, config = entropy.fit_model(
        source, quantizer, steps=60, batch_size=4, seed=0, validation_percent=30.0
    )
    assert all(x.dtype == np.int8 for x in weights.values())
    shapes = entropy_model.shapes(EntropyModelConfig(**config))
    assert {name: x.shape for name, x in weights.items()} == shapes
    step, *_, told = capsys.readouterr().out.splitlines()
    assert step.startswith("step 50: ")
    costs = dict(
        part.split(" kbps take ") for part in told.removeprefix("speech, held out: ").split(", ")
    )
    # Of 1,024 semantic codes 64 occur, and of 256 residual ones as many.
    assert float(costs["0.175"]) < 0.085 and float(costs["0.975"]) < 0.65


def test_without_clips_it_says_so(source: TokenSource, rng: np.random.Generator) -> None:
    quantizer = {
        "basis": unit(rng, 2**10, 12),
        "basis_map": {"kernel": np.eye(12)},
        "residual_codes": rng.standard_normal((8, 256, 20)),
    }
    with pytest.raises(UserError, match="no clip to learn from; change --validation_percent"):
        entropy.fit_model(source, quantizer, 1, 1, 0, validation_percent=100.0)


def test_principal_components_keep_what_there_is(rng: np.random.Generator) -> None:
    codes = rng.standard_normal((2, 30, 3)) @ rng.standard_normal((3, 10))
    found = entropy.principal(codes, 5)
    assert found.shape == (2, 30, 5) and np.mean(np.square(found)) == pytest.approx(1.0)
    np.testing.assert_allclose(found[:, :, 3:], 0.0, atol=1e-6)
    flat, kept = codes.reshape(60, 10), found.reshape(60, 5)
    scale = np.linalg.norm(kept[0]) / np.linalg.norm(flat[0])
    np.testing.assert_allclose(kept @ kept.T, scale**2 * (flat @ flat.T), atol=1e-4)
