"""What judges of audio ask for: packages, weights, and audio at a sample rate of their own.

A package or file that nobody asked for is `Unavailable`, and the table shows a dash; a file that
was named and is not there is the user's mistake.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from gac_jax.errors import UserError
from gac_jax.metrics.metric import Unavailable
from gac_jax.rates import SAMPLE_RATE

WITH_EXTRA = 'pip install "gac_jax[eval]"'


def package(name: str, install: str = WITH_EXTRA) -> Any:
    """Imports a package, or a module of it, that the install need not have.

    Args:
      name: as it is imported.
      install: the command that brings it.

    Raises:
      Unavailable: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"needs the package {name.partition('.')[0]}; {install}") from error


def weights(path: str, what: str) -> Path:
    """Checks that a file or folder of weights is there.

    Args:
      path: of the weights; "" if the user has named none.
      what: they are, where their authors publish them, and the flag that names them.

    Raises:
      Unavailable: none are named.
      UserError: they are named and not there.
    """
    if not path:
        raise Unavailable(f"needs {what}")
    if not Path(path).exists():
        raise UserError(f"{path}: does not exist; needed is {what}")
    return Path(path)


def at_rate(wave: np.ndarray, rate: int) -> np.ndarray:
    """Resamples as soxr does at its quality HQ, and clips as a file of 16 bits would.

    Args:
      wave: (S,) float32 at 32 kHz.
      rate: samples a second wanted.

    Returns:
      (S * rate / 32000,) float32 within -1 and 1.
    """
    return np.clip(soxr.resample(wave, SAMPLE_RATE, rate, quality="HQ"), -1, 1)
