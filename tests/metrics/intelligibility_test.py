import types
import warnings
from typing import Any

import numpy as np
import pytest

from gac_jax.metrics.intelligibility import Pesq, Stoi
from gac_jax.rates import SAMPLE_RATE
from tests.metrics.excerpts import excerpt, noise_like, speech


class PesqError(RuntimeError):
    pass


def test_stoi_sees_both_waves_at_32_khz() -> None:
    def stoi(reference: np.ndarray, decoded: np.ndarray, rate: int) -> float:
        assert (reference.tolist(), decoded.tolist(), rate) == ([1, 2], [3, 4], SAMPLE_RATE)
        return 0.5

    found = Stoi(stoi).measure(excerpt(np.array([1, 2]), np.array([3, 4])))
    assert found == {"stoi": 0.5} and {*found} == {column.name for column in Stoi.columns}


def test_a_clip_too_short_for_stoi_has_none() -> None:
    def stoi(*_: Any) -> float:
        warnings.warn("Not enough STFT frames", RuntimeWarning, stacklevel=2)
        return 1e-5

    assert Stoi(stoi).measure(excerpt(np.ones(9), np.ones(9))) == {}


def test_pesq_sees_twenty_seconds_at_16_khz() -> None:
    def pesq(rate: int, reference: np.ndarray, decoded: np.ndarray, mode: str) -> float:
        assert (rate, mode, len(reference), len(decoded)) == (16_000, "wb", 320_000, 320_000)
        np.testing.assert_allclose(reference[:300_000], 2 * decoded[:300_000], rtol=1e-5)
        return 4.5

    judge = Pesq(types.SimpleNamespace(pesq=pesq, PesqError=PesqError))
    wave = np.full(21 * SAMPLE_RATE, 0.5)
    assert judge.measure(excerpt(wave, wave / 2)) == {"pesq": 4.5}


def test_a_clip_without_utterance_has_no_pesq() -> None:
    def pesq(*_: Any) -> float:
        raise PesqError("No utterances detected")

    judge = Pesq(types.SimpleNamespace(pesq=pesq, PesqError=PesqError))
    assert judge.measure(excerpt(np.ones(9), np.ones(9))) == {}
    unasked = Pesq(types.SimpleNamespace(pesq=None, PesqError=PesqError))  # would divide by zero
    assert unasked.measure(excerpt(np.ones(9), np.zeros(9))) == {}


def test_stoi_of_speech_is_one_and_of_noise_low() -> None:
    pytest.importorskip("pystoi", reason='needs pystoi: pip install "gac_jax[eval]"')
    wave, judge = speech(), Stoi.load()
    assert judge.measure(excerpt(wave, wave))["stoi"] == pytest.approx(1, abs=1e-6)
    assert judge.measure(excerpt(wave, noise_like(wave)))["stoi"] < 0.4
    assert judge.measure(excerpt(wave[:3200], wave[:3200])) == {}


def test_pesq_of_speech_is_highest_and_of_noise_lowest() -> None:
    pytest.importorskip("pesq", reason="needs pesq: pip install pesq")
    wave, judge = speech(), Pesq.load()
    assert judge.measure(excerpt(wave, wave))["pesq"] == pytest.approx(4.64, abs=0.01)
    assert judge.measure(excerpt(wave, noise_like(wave)))["pesq"] < 1.2
    assert judge.measure(excerpt(wave[:3200], wave[:3200])) == {}
