"""How well decoded speech can be understood and how it compares, by classic signal models.

Both compare with the original, of which they demand the same timing: a codec that shifts speech by
a few milliseconds is punished for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Self

from gac_jax.metrics.judges import at_rate, package
from gac_jax.metrics.metric import SPEECH, Column, Excerpt
from gac_jax.rates import SAMPLE_RATE

PESQ_RATE = 16_000
PESQ_SECONDS = 20  # the ITU's program crashes at the 51st utterance: 60 s of bursts are enough


class Stoi:
    """Short-time objective intelligibility (Taal et al., 2011), by the package pystoi.

    0 to 1, of one-third octave bands from 150 Hz to 4.3 kHz at 10 kHz, over stretches of 384 ms;
    mean over clips. A clip with less than that of sound has none.
    """

    columns = (Column("stoi", "STOI", True, 3),)
    domains = SPEECH

    def __init__(self, stoi: Callable[..., float]) -> None:
        self._stoi = stoi

    @classmethod
    def load(cls) -> Self:
        """Finds the package.

        Raises:
          Unavailable: pystoi is not installed.
        """
        return cls(package("pystoi").stoi)

    def measure(self, excerpt: Excerpt) -> dict[str, float]:
        """STOI of one clip."""
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # how pystoi says "too short"
            try:
                score = self._stoi(excerpt.reference, excerpt.decoded, SAMPLE_RATE)
            except RuntimeWarning:
                return {}
        return {"stoi": float(score)}


class Pesq:
    """Wide-band PESQ (ITU-T P.862.2) as MOS-LQO, 1.0 to 4.64, by the package pesq.

    At 16 kHz, of the first 20 s of a clip; mean over clips. A clip in which the ITU's program finds
    no utterance has none, nor has one that was decoded to silence.
    """

    columns = (Column("pesq", "PESQ-WB", True),)
    domains = SPEECH

    def __init__(self, pesq: Any) -> None:
        self._pesq = pesq

    @classmethod
    def load(cls) -> Self:
        """Finds the package.

        Raises:
          Unavailable: pesq is not installed.
        """
        return cls(package("pesq", "pip install pesq (it compiles the ITU's C code)"))

    def measure(self, excerpt: Excerpt) -> dict[str, float]:
        """PESQ of one clip."""
        seconds = PESQ_SECONDS * SAMPLE_RATE
        waves = [at_rate(x[:seconds], PESQ_RATE) for x in (excerpt.reference, excerpt.decoded)]
        if not all(wave.any() for wave in waves):
            return {}
        try:
            return {"pesq": float(self._pesq.pesq(PESQ_RATE, *waves, "wb"))}
        except self._pesq.PesqError:
            return {}
