"""A model of this package as a system."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gac_jax import rates
from gac_jax.bitstream import Tokens
from gac_jax.codec import Codec, find, load
from gac_jax.metrics.capacity import model_size
from gac_jax.rates import SAMPLE_RATE

BARE = "model"  # what training calls every model's folder: the folder around it tells them apart


class Gac:
    """A model folder at a rate; see `gac_jax.evaluation.systems.System`."""

    concurrent = False

    def __init__(
        self, folder: str | None, model: str, kbps: float, sampling: Mapping[str, Any]
    ) -> None:
        """Loads the model.

        Args:
          folder: of the model, which then is part of the name; None takes `model`.
          model: a bundled name or a model folder.
          kbps: rate.
          sampling: seed, steps, solver, guidance and temperature as for `Codec.decode`.

        Raises:
          UserError: no such rate or model.
        """
        rates.residuals_for(kbps)
        self._kbps, self._sampling = kbps, sampling
        self._folder = find(folder or model)
        self.name = f"{'-'.join(['gac', *([_label(folder)] if folder else [])])}@{kbps:g}"
        self.parameters: Mapping[str, int] = _load(self._folder).num_parameters
        self.settings = {
            "model": _digest(self._folder),
            "codebooks": list(_load(self._folder).codebook_sizes),
            "trained_seconds": _known(model_size(self._folder)[1]),
            **sampling,
        }

    def encode(self, wave: np.ndarray) -> bytes:
        """What a .gac file holds."""
        return _load(self._folder).encode(wave, SAMPLE_RATE, self._kbps).to_bytes()

    def decode(self, data: bytes, num_samples: int) -> np.ndarray:
        """The file decoded; the number of samples is in it."""
        return _load(self._folder).decode(Tokens.from_bytes(data), **self._sampling)


@lru_cache(maxsize=1)  # a large model leaves no room for a second
def _load(folder: Path) -> Codec:
    return load(folder)


@lru_cache
def _digest(folder: Path) -> str:
    """Stands for all weights, the decoder's too, unlike the model's fingerprint."""
    with (folder / "weights.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number


def _label(folder: str) -> str:
    path = Path(folder)
    return path.resolve().parent.name if path.name == BARE else path.name
