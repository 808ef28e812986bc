from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gac_jax.errors import UserError
from gac_jax.metrics.metric import Column, Unavailable
from gac_jax.metrics.speaker import SpeakerSimilarity, mel_features
from tests.metrics.excerpts import excerpt, noise_like, speech

GOLDEN = Path(__file__).parents[1] / "golden"
EXTRA = 'needs {}: pip install "gac_jax[eval]"'
SIM = Column("sim", "SIM", True, 3)


def by_mean(wave: np.ndarray) -> np.ndarray:
    """An embedding that turns with the mean of a wave: -1 to 1 over half a circle."""
    angle = np.pi / 2 * np.mean(wave[100:-100])
    return 3 * np.array([np.cos(angle), np.sin(angle)])


@pytest.mark.parametrize(("mean", "cosine"), [(1, 1), (1 / 3, 0.5), (0.001, 0), (-1, -1)])
def test_similarity_is_the_cosine_between_embeddings(mean: float, cosine: float) -> None:
    judge = SpeakerSimilarity(by_mean, SIM)
    found = judge.measure(excerpt(np.ones(32_000), np.full(32_000, mean)))
    assert judge.columns == (SIM,)
    assert found == {"sim": pytest.approx(cosine, abs=2e-3)}


def test_what_has_no_voice_has_no_similarity() -> None:
    judge = SpeakerSimilarity(by_mean, SIM)
    wave = np.ones(32_000)
    assert judge.measure(excerpt(wave[:7000], wave[:7000])) == {}
    assert judge.measure(excerpt(wave, 0 * wave)) == judge.measure(excerpt(0 * wave, wave)) == {}
    nothing = SpeakerSimilarity(lambda wave: np.zeros(2), SIM)
    assert nothing.measure(excerpt(wave, wave)) == {}


def test_what_is_missing_for_wespeaker_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"^needs an ONNX speaker model, .*wespeaker .*--speaker"):
        SpeakerSimilarity.load_wespeaker("")
    with pytest.raises(UserError, match=r"no\.onnx: does not exist; needed is an ONNX"):
        SpeakerSimilarity.load_wespeaker(str(tmp_path / "no.onnx"))


def test_features_are_those_of_torchaudio() -> None:
    fbank = pytest.importorskip("kaldi_native_fbank", reason=EXTRA.format("kaldi_native_fbank"))
    golden = load_file(GOLDEN / "speaker.safetensors")
    features = mel_features(fbank, golden["wave"])
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, golden["features"], atol=1e-3)  # of 6.6 at most


def test_an_onnx_model_is_asked_for_embeddings() -> None:
    for name in ("onnxruntime", "kaldi_native_fbank"):
        pytest.importorskip(name, reason=EXTRA.format(name))
    wave, judge = speech(), SpeakerSimilarity.load_wespeaker(str(GOLDEN / "speaker.onnx"))
    assert [column.name for column in judge.columns] == ["sim"]
    assert judge.measure(excerpt(wave, wave))["sim"] == pytest.approx(1, abs=1e-6)
    quieter, noise = (judge.measure(excerpt(wave, x))["sim"] for x in (wave / 2, noise_like(wave)))
    assert noise < 0.99 < 0.999 < quieter  # magnitudes are all positive: never far from 1


def test_a_file_that_is_no_onnx_model(tmp_path: Path) -> None:
    for name in ("onnxruntime", "kaldi_native_fbank"):
        pytest.importorskip(name, reason=EXTRA.format(name))
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(UserError, match=r"bad\.onnx: no ONNX model of one input; needed is"):
        SpeakerSimilarity.load_wespeaker(str(path))


@pytest.mark.filterwarnings("ignore:.*scipy.ndimage.morphology:DeprecationWarning")
def test_resemblyzer_tells_speech_from_noise() -> None:
    pytest.importorskip("resemblyzer", reason="needs resemblyzer: pip install resemblyzer")
    wave, judge = speech(), SpeakerSimilarity.load_resemblyzer()
    assert judge.measure(excerpt(wave, wave))["sim_resemblyzer"] == pytest.approx(1, abs=1e-6)
    assert judge.measure(excerpt(wave, noise_like(wave)))["sim_resemblyzer"] < 0.8
