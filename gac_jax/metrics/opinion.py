"""What listeners would say of decoded speech, guessed by networks: mean opinion scores, 1 to 5.

| column | definition |
|---|---|
| dnsmos_p808 | overall quality by the rules of ITU-T P.808 (Reddy et al., 2021) |
| dnsmos_sig, _bak, _ovrl | speech, background and overall by P.835 (Reddy et al., 2022) |
| nisqa | overall quality by NISQA v2.0 (Mittag et al., 2021), weights nisqa.tar |
| mos | mean of dnsmos_p808 and nisqa |

The report has one column MOS and cites both tools; that its column is `mos` is our reading. None
looks at the original: a system that says something else in a clear voice does well here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np

from gac_jax.errors import UserError
from gac_jax.metrics.judges import at_rate, package, weights
from gac_jax.metrics.metric import SPEECH, ClipMetric, Column, Excerpt

DNSMOS_RATE = 16_000
NISQA_RATE = 48_000  # of the audio that NISQA was trained on
NISQA_NAME = "nisqa.tar"
NISQA_PUBLISHED = (
    f"{NISQA_NAME} of NISQA v2.0, from the folder weights/ of gabrielmittag/NISQA on GitHub "
    "(CC BY-NC-SA 4.0), in --nisqa"
)
_DNSMOS = {  # column: key of speechmos
    "dnsmos_p808": "p808_mos",
    "dnsmos_sig": "sig_mos",
    "dnsmos_bak": "bak_mos",
    "dnsmos_ovrl": "ovrl_mos",
}


class Dnsmos:
    """DNSMOS with the networks that the package speechmos brings, of its authors at Microsoft.

    At 16 kHz, mean over windows of 9.01 s each second; shorter clips are repeated.
    """

    columns = (
        Column("dnsmos_p808", "DNSMOS P.808", True),
        Column("dnsmos_sig", "DNSMOS SIG", True),
        Column("dnsmos_bak", "DNSMOS BAK", True),
        Column("dnsmos_ovrl", "DNSMOS OVRL", True),
    )
    domains = SPEECH

    def __init__(self, run: Callable[[np.ndarray, int], dict[str, float]]) -> None:
        self._run = run

    @classmethod
    def load(cls) -> Self:
        """Finds the package.

        Raises:
          Unavailable: speechmos is not installed.
        """
        return cls(package("speechmos.dnsmos").run)

    def measure(self, excerpt: Excerpt) -> dict[str, float]:
        """The four scores of one clip."""
        scores = self._run(at_rate(excerpt.decoded, DNSMOS_RATE), DNSMOS_RATE)
        return {name: float(scores[key]) for name, key in _DNSMOS.items()}


class Nisqa:
    """NISQA by the package torchmetrics, at 48 kHz; too short a clip (0.2 s) has none."""

    columns = (Column("nisqa", "NISQA", True),)
    domains = SPEECH

    def __init__(self, score: Callable[[np.ndarray], float]) -> None:
        self._score = score

    @classmethod
    def load(cls, path: str) -> Self:
        """Loads the weights, as tensors alone.

        Args:
          path: of nisqa.tar; "" if there is none.

        Raises:
          Unavailable: a package or the file is missing.
          UserError: the file is not there, or has another name.
        """
        file = weights(path, NISQA_PUBLISHED)
        if file.name != NISQA_NAME:
            raise UserError(f"{path}: rename it to {NISQA_NAME}; nisqa_tts.tar is another network")
        install = "pip install torch torchmetrics requests"
        torch = package("torch", install)
        module = package("torchmetrics.functional.audio.nisqa", install)
        module.NISQA_DIR = str(file.parent)  # or it would look for a download of its own

        def score(wave: np.ndarray) -> float:
            judged = module.non_intrusive_speech_quality_assessment(
                torch.from_numpy(wave), NISQA_RATE
            )
            return float(judged[0])  # of five, the overall one

        try:
            score(np.zeros(NISQA_RATE, np.float32))
        except Exception as error:  # torch has many for a file that is not what it should be
            raise UserError(f"{path}: not read as weights; needed is {NISQA_PUBLISHED}") from error
        return cls(score)

    def measure(self, excerpt: Excerpt) -> dict[str, float]:
        """The overall score of one clip."""
        try:
            return {"nisqa": self._score(at_rate(excerpt.decoded, NISQA_RATE))}
        except RuntimeError:  # how torchmetrics says "too short" or "too long"
            return {}


class Mos:
    """Both judges and their mean; stands for the two where both are at hand."""

    domains = SPEECH

    def __init__(self, dnsmos: ClipMetric, nisqa: ClipMetric) -> None:
        self._judges = dnsmos, nisqa
        self.columns = (*dnsmos.columns, *nisqa.columns, Column("mos", "MOS", True))

    def measure(self, excerpt: Excerpt) -> dict[str, float]:
        """Scores of both, and their mean if there are both."""
        scores = {k: v for judge in self._judges for k, v in judge.measure(excerpt).items()}
        if {"dnsmos_p808", "nisqa"} <= set(scores):
            scores["mos"] = (scores["dnsmos_p808"] + scores["nisqa"]) / 2
        return scores
