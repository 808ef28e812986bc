"""Clips for the tests of metrics."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import gac_jax
from gac_jax.data.sources import Clip
from gac_jax.metrics.metric import Excerpt
from gac_jax.rates import SAMPLE_RATE

SPEECH = Path(gac_jax.__file__).parent / "examples" / "speech.flac"


def excerpt(reference: np.ndarray, decoded: np.ndarray, **known: Any) -> Excerpt:
    """A clip of speech, English if nothing else is known of it."""
    clip = Clip(**{"path": "a.wav", "domain": "speech", "lang": "en", **known})
    return Excerpt(clip, reference.astype(np.float32), decoded.astype(np.float32))


def speech(seconds: float = 3.0) -> np.ndarray:
    """The start of the bundled recording, (S,) float32 at 32 kHz."""
    wave, rate = soundfile.read(SPEECH, frames=round(seconds * SAMPLE_RATE), dtype="float32")
    assert rate == SAMPLE_RATE
    return wave


def noise_like(wave: np.ndarray, seed: int = 0) -> np.ndarray:
    """White noise of the same power."""
    noise = np.random.default_rng(seed).standard_normal(wave.size)
    return (noise * np.sqrt(np.mean(np.square(wave)))).astype(np.float32)
