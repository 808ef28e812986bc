"""What listeners would say of decoded audio, guessed by Audiobox-Aesthetics (Tjandra et al., 2025).

| column | axis, 1 to 10 |
|---|---|
| aes_ce | content enjoyment |
| aes_cu | content usefulness |
| aes_pc | production complexity: more is not better |
| aes_pq | production quality |
| aes | mean of the four |

At 16 kHz mono, in windows of 10 s, mean over windows by their length. None looks at the original.
The report has one column AES for music, about 7; that it is the mean of the four is our reading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import numpy as np

from gac_jax.errors import UserError
from gac_jax.metrics.judges import at_rate, package, weights
from gac_jax.metrics.metric import ALL, Column, Excerpt

RATE = 16_000
PUBLISHED = (
    "checkpoint.pt of Audiobox-Aesthetics, linked from the README of "
    "facebookresearch/audiobox-aesthetics on GitHub (CC BY 4.0), in --aesthetics"
)
AXES = ("CE", "CU", "PC", "PQ")


class Aesthetics:
    """The four axes and their mean."""

    columns = (
        Column("aes_ce", "AES CE", True),
        Column("aes_cu", "AES CU", True),
        Column("aes_pc", "AES PC", None),
        Column("aes_pq", "AES PQ", True),
        Column("aes", "AES", True),
    )
    domains = ALL

    def __init__(self, judge: Callable[[np.ndarray], Mapping[str, float]]) -> None:
        """Takes a network.

        Args:
          judge: (S,) float32 at 16 kHz to values by axis.
        """
        self._judge = judge

    @classmethod
    def load(cls, path: str) -> Self:
        """Loads the weights.

        Args:
          path: of checkpoint.pt; "" if there is none.

        Raises:
          Unavailable: the package audiobox_aesthetics or the file is missing.
          UserError: the file is not there, or holds something else.
        """
        file = weights(path, PUBLISHED)
        install = "pip install audiobox_aesthetics"
        torch = package("torch", install)
        module = package("audiobox_aesthetics.infer", install)
        try:
            predictor = module.initialize_predictor(str(file))
        except Exception as error:  # whatever a file of any kind makes torch raise
            raise UserError(f"{path}: holds no weights of Audiobox-Aesthetics") from error

        def judge(wave: np.ndarray) -> Mapping[str, float]:
            row = {"path": torch.from_numpy(wave)[None], "sample_rate": RATE}
            return predictor.forward([row])[0]

        return cls(judge)

    def measure(self, excerpt: Excerpt) -> dict[str, float]:
        """All five scores of one clip."""
        axes = self._judge(at_rate(excerpt.decoded, RATE))
        scores = {f"aes_{axis.lower()}": float(axes[axis]) for axis in AXES}
        return {**scores, "aes": float(np.mean(list(scores.values())))}
