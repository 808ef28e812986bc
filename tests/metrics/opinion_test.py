import sys
import types
from pathlib import Path

import numpy as np
import pytest

from gac_jax.errors import UserError
from gac_jax.metrics.metric import Unavailable
from gac_jax.metrics.opinion import Dnsmos, Mos, Nisqa
from tests.metrics.excerpts import excerpt, noise_like, speech

SCORES = {"ovrl_mos": 1.0, "sig_mos": 2.0, "bak_mos": 3.0, "p808_mos": 4.0}
LOUD = excerpt(np.zeros(320), np.full(320, 2.0))


def dnsmos() -> Dnsmos:
    def run(wave: np.ndarray, rate: int) -> dict[str, float]:
        assert (len(wave), rate) == (160, 16_000) and np.abs(wave).max() <= 1
        return SCORES

    return Dnsmos(run)


def too_short(wave: np.ndarray) -> float:
    raise RuntimeError("Input signal is too short.")


def fake_torchmetrics(monkeypatch: pytest.MonkeyPatch, scores: object) -> types.SimpleNamespace:
    def judge(wave: np.ndarray, rate: int) -> object:
        if not isinstance(scores, list):
            raise ValueError(scores)
        assert rate == 48_000
        return scores

    module = types.SimpleNamespace(non_intrusive_speech_quality_assessment=judge)
    torch = types.SimpleNamespace(from_numpy=lambda wave: wave)
    for name, fake in (("torch", torch), ("torchmetrics.functional.audio.nisqa", module)):
        parts = name.split(".")
        for i in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i]), types.SimpleNamespace())
        monkeypatch.setitem(sys.modules, name, fake)
    return module


def test_dnsmos_hears_the_decoded_clip_at_16_khz_within_full_scale() -> None:
    found = dnsmos().measure(LOUD)
    assert found == {
        "dnsmos_p808": 4.0,
        "dnsmos_sig": 2.0,
        "dnsmos_bak": 3.0,
        "dnsmos_ovrl": 1.0,
    }
    assert {*found} == {column.name for column in Dnsmos.columns}


def test_mos_is_the_mean_of_p808_and_nisqa() -> None:
    judge = Mos(dnsmos(), Nisqa(lambda wave: 3.0))
    found = judge.measure(LOUD)
    assert found["mos"] == 3.5 and found["nisqa"] == 3.0 and found["dnsmos_ovrl"] == 1.0
    assert [*found] == [column.name for column in judge.columns]


def test_there_is_no_mos_of_one_judge() -> None:
    assert set(Mos(dnsmos(), Nisqa(too_short)).measure(LOUD)) == set(dnsmos().measure(LOUD))


def test_nisqa_takes_the_weights_that_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = fake_torchmetrics(monkeypatch, [3.25, 1.0, 1.0, 1.0, 1.0])
    path = tmp_path / "nisqa.tar"
    path.write_bytes(b"")
    assert Nisqa.load(str(path)).measure(LOUD) == {"nisqa": 3.25}
    assert str(tmp_path) == module.NISQA_DIR


def test_what_is_missing_for_nisqa_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(Unavailable, match=r"^needs nisqa\.tar of NISQA v2\.0, .*--nisqa$"):
        Nisqa.load("")
    with pytest.raises(UserError, match=r"nisqa\.tar: does not exist; needed is nisqa\.tar of"):
        Nisqa.load(str(tmp_path / "nisqa.tar"))
    other, path = tmp_path / "nisqa_tts.tar", tmp_path / "nisqa.tar"
    for file in (other, path):
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"nisqa_tts\.tar: rename it to nisqa\.tar"):
        Nisqa.load(str(other))
    fake_torchmetrics(monkeypatch, "no weights")
    with pytest.raises(UserError, match=r"nisqa\.tar: not read as weights; needed is nisqa\.tar"):
        Nisqa.load(str(path))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(Unavailable, match="needs the package torch; pip install torch torchm"):
        Nisqa.load(str(path))


def test_dnsmos_prefers_speech_to_noise() -> None:
    for name in ("onnxruntime", "speechmos"):
        pytest.importorskip(name, reason=f'needs {name}: pip install "gac_jax[eval]"')
    wave, judge = speech(), Dnsmos.load()
    clean, noise = (judge.measure(excerpt(wave, x)) for x in (wave, noise_like(wave)))
    assert all(1 <= noise[name] < clean[name] <= 5 for name in clean)
