import math
import sys
from pathlib import Path

import numpy as np
import pytest

from gac_jax.errors import UserError
from gac_jax.metrics.embeddings import (
    CLUSTERS,
    WHISPER_WINDOW,
    Passt,
    WhisperFeatures,
    cluster_logits,
)
from gac_jax.metrics.metric import Unavailable
from gac_jax.signal.audio_io import read_audio

EXAMPLES = Path(__file__).resolve().parents[2] / "gac_jax" / "examples"
SECOND = 32_000


def tag(wave: np.ndarray) -> np.ndarray:
    """Stands for PaSST: logits are sums of stretches, the embedding is the loudness of others."""
    logits = wave[: 527 * 100].reshape(527, 100).sum(axis=1)
    return np.concatenate([logits, np.abs(wave[-768 * 100 :]).reshape(768, 100).mean(axis=1)])


@pytest.fixture(scope="module")
def features(tiny_model: Path) -> WhisperFeatures:
    return WhisperFeatures.load(tiny_model)


def test_passt_hears_ten_seconds_and_zeros_after_the_end(rng: np.random.Generator) -> None:
    heard: list[np.ndarray] = []
    passt = Passt(lambda wave: (heard.append(wave), tag(wave))[1])
    wave = rng.standard_normal(11 * SECOND).astype(np.float32)
    for samples in (11 * SECOND, SECOND):
        described = passt.describe(wave[:samples])
        assert {k: v.shape for k, v in described.items()} == {"logits": (527,), "embedding": (768,)}
    long, short = heard
    np.testing.assert_array_equal(long, wave[: 10 * SECOND])
    np.testing.assert_array_equal(short[:SECOND], wave[:SECOND])
    assert short.shape == (10 * SECOND,) and not short[SECOND:].any()


def test_passt_columns_of_equal_and_of_other_clips(rng: np.random.Generator) -> None:
    passt = Passt(tag)
    waves = rng.standard_normal((20, 10 * SECOND)).astype(np.float32)
    references = [passt.describe(wave) for wave in waves]
    noise = [passt.describe(0.5 * wave[::-1]) for wave in waves]
    same, other = passt.compare(references, references), passt.compare(references, noise)
    assert set(same) == set(other) == {column.name for column in passt.columns}
    assert same["fd_passt"] == pytest.approx(0.0, abs=1e-9) and same["kl_passt"] == 0.0
    assert other["fd_passt"] > 0.1 and other["kl_passt"] > 1.0
    assert other["is_passt"] < same["is_passt"] <= 2  # clips in a split
    assert math.isnan(same["fd_inf_passt"])  # 20 clips in 768 dimensions


def test_passt_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"passt-s-f128.*kkoutini/PaSST on GitHub, in --passt"):
        Passt.load("")
    with pytest.raises(UserError, match="weights.pt: does not exist"):
        Passt.load(str(tmp_path / "weights.pt"))
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "weights.pt").touch()
    with pytest.raises(Unavailable, match="torch; pip install hear21passt"):
        Passt.load(str(tmp_path / "weights.pt"))


def test_features_do_not_depend_on_loudness(
    features: WhisperFeatures, rng: np.random.Generator
) -> None:
    wave = rng.standard_normal(SECOND).astype(np.float32)
    described, soft = (features.describe(x)["embedding"] for x in (wave, 0.01 * wave))
    assert described.shape == (2 * 16,)
    np.testing.assert_allclose(soft, described, atol=1e-4)
    assert np.isfinite(features.describe(np.zeros(SECOND, np.float32))["embedding"]).all()


def test_features_are_mean_and_deviation_over_all_pieces(
    features: WhisperFeatures, rng: np.random.Generator
) -> None:
    """Of a clip of one window and a half, the window counts twice as much as the half."""
    wave = rng.standard_normal(WHISPER_WINDOW * 3 // 2).astype(np.float32)
    wave[WHISPER_WINDOW:] *= np.linspace(0, 1, WHISPER_WINDOW // 2, dtype=np.float32)
    mean, deviation = np.split(features.describe(wave)["embedding"], 2)
    wave /= np.sqrt(np.mean(np.square(wave)))
    pieces = [features._describe_piece(x) for x in np.split(wave, [WHISPER_WINDOW])]
    assert [len(piece) for piece in pieces] == [512, 256]
    np.testing.assert_allclose(mean, np.concatenate(pieces).mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(deviation, np.concatenate(pieces).std(axis=0), atol=1e-4)


def test_what_comes_after_the_clip_is_not_heard(
    features: WhisperFeatures, rng: np.random.Generator
) -> None:
    wave = rng.standard_normal(SECOND).astype(np.float32)
    alone = features._describe_piece(wave)
    assert alone.shape == (50, 16)
    padded = np.pad(wave, (0, WHISPER_WINDOW - SECOND))
    heard = np.asarray(features._run(features._params, padded, 512))[:50]
    assert np.abs(heard - alone).max() > 1e-3  # without the mask, silence is attended to


def test_the_bundled_model_hears_noise_as_far_away(rng: np.random.Generator) -> None:
    features = WhisperFeatures.load()
    paths = [EXAMPLES / f"{name}.flac" for name in ("music", "sound", "speech")]
    waves = [read_audio(path)[: 4 * SECOND] for path in paths]

    def decoded(level: float) -> list[dict[str, np.ndarray]]:
        noisy = (x + level * x.std() * rng.standard_normal(x.size) for x in waves)
        return [features.describe(x.astype(np.float32)) for x in noisy]

    sets = decoded(0.0), decoded(0.03), decoded(1.0)
    distances = [features.compare(sets[0], other) for other in sets]
    same, near, far = (found["fd_whisper"] for found in distances)
    assert same == pytest.approx(0.0, abs=1e-6)
    assert 0 < 5 * near < far
    assert set(distances[0]) == {column.name for column in features.columns}
    few = ("fd_inf_whisper", "kl_whisper", "is_whisper")
    assert all(math.isnan(found[name]) for found in distances for name in few)


def test_clusters_of_the_originals_stand_for_classes() -> None:
    """Pairs of points 2 apart, whose middles are 10 apart: each is 1 from its own middle."""
    middles = 10.0 * np.arange(CLUSTERS)
    points = np.sort(np.concatenate([middles - 1, middles + 1]))[:, None]
    points = points[np.argsort(np.arange(2 * CLUSTERS) % 2, kind="stable")]  # one of each first
    logits, other = cluster_logits(points, np.array([[0.0], [3.0]]))
    assert logits.shape == (2 * CLUSTERS, CLUSTERS)
    np.testing.assert_allclose(np.sort(other[0]), np.sort(-np.square(middles)))
    np.testing.assert_allclose(np.sort(other[1]), np.sort(-np.square(middles - 3.0)))


def test_divergence_and_score_by_clusters(
    features: WhisperFeatures, rng: np.random.Generator
) -> None:
    clips = [{"embedding": x} for x in 3.0 * rng.standard_normal((20, 32))]
    near = [{"embedding": c["embedding"] + 0.1 * rng.standard_normal(32)} for c in clips]
    same, slightly, shuffled = (features.compare(clips, x) for x in (clips, near, clips[::-1]))
    assert same["kl_whisper"] == 0.0
    assert 0.0 < 10 * slightly["kl_whisper"] < shuffled["kl_whisper"]
    assert 1.0 < same["is_whisper"] <= CLUSTERS
    alike = features.compare(clips, [clips[0]] * 20)
    assert alike["is_whisper"] == pytest.approx(1.0)
