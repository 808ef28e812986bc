import sys
from pathlib import Path

import numpy as np
import pytest

from gac_jax.data.sources import Clip
from gac_jax.errors import UserError
from gac_jax.metrics.aesthetics import Aesthetics
from gac_jax.metrics.metric import Excerpt, Unavailable


def test_the_decoded_clip_is_judged_at_16_khz() -> None:
    heard: list[np.ndarray] = []

    def judge(wave: np.ndarray) -> dict[str, float]:
        heard.append(wave)
        return {"CE": 1.0, "CU": 2.0, "PC": 3.0, "PQ": 6.0}

    silence, tone = np.zeros(64_000, np.float32), np.full(64_000, 0.5, np.float32)
    scores = Aesthetics(judge).measure(Excerpt(Clip("a.wav", "music"), silence, tone))
    assert scores == {"aes_ce": 1.0, "aes_cu": 2.0, "aes_pc": 3.0, "aes_pq": 6.0, "aes": 3.0}
    assert list(scores) == [column.name for column in Aesthetics.columns]
    assert heard[0].shape == (32_000,) and heard[0].mean() == pytest.approx(0.5, abs=0.01)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"checkpoint.pt of Audiobox.*in --aesthetics"):
        Aesthetics.load("")
    file = tmp_path / "checkpoint.pt"
    with pytest.raises(UserError, match="checkpoint.pt: does not exist"):
        Aesthetics.load(str(file))
    file.touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(Unavailable, match="torch; pip install audiobox_aesthetics"):
        Aesthetics.load(str(file))
