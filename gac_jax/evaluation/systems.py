"""Codecs to compare, by the names that a command line gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from gac_jax.errors import UserError
from gac_jax.evaluation.gac import Gac
from gac_jax.evaluation.neural import KINDS, Neural
from gac_jax.evaluation.programs import PROGRAMS, external

GRAMMAR = (
    "a system is one of gac@KBPS, gac:FOLDER@KBPS, opus@KBPS, codec2@MODE, mp3@KBPS, aac@KBPS, "
    "encodec:FOLDER@KBPS, dac:FOLDER@KBPS, mimi:FOLDER@KBPS, identity, noise, "
    "cmd:NAME:ENCODE {in} {bits}:DECODE {bits} {out}"
)
REFERENCE = "reference"  # what originals are called where systems have their names
_PATTERN = re.compile(r"(?P<kind>\w+)(:(?P<folder>.+))?@(?P<rate>[^@]+)")
_FILE_NAME = re.compile(r"[\w.+-][\w.@+-]*")


class System(Protocol):
    """Something that sends audio as bytes."""

    @property
    def name(self) -> str:
        """In tables, and of files."""
        ...

    @property
    def parameters(self) -> Mapping[str, int]:
        """Of its networks, by part; empty where it has none."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What its audio depends on besides its name, as JSON has it."""
        ...

    @property
    def concurrent(self) -> bool:
        """Whether clips may run side by side; what takes all cores by itself does not."""
        ...

    def encode(self, wave: np.ndarray) -> bytes:
        """What is sent of a wave, (S,) float32 at 32 kHz."""
        ...

    def decode(self, data: bytes, num_samples: int) -> np.ndarray:
        """The wave again, (num_samples,) float32 at 32 kHz, from nothing but what was sent."""
        ...


class Identity:
    """Sends 16-bit samples: every metric at its best."""

    name = "identity"
    parameters: Mapping[str, int] = {}
    settings: Mapping[str, Any] = {}
    concurrent = True

    def encode(self, wave: np.ndarray) -> bytes:
        """Rounds as WAV files do."""
        return np.clip(np.round(wave * 32_768.0), -32_768, 32_767).astype("<i2").tobytes()

    def decode(self, data: bytes, num_samples: int) -> np.ndarray:
        """The rounded samples."""
        return np.frombuffer(data, "<i2").astype(np.float32) / 32_768.0


class Noise:
    """Sends the RMS of a clip in four bytes and decodes white noise: every metric at its worst."""

    name = "noise"
    parameters: Mapping[str, int] = {}
    settings: Mapping[str, Any] = {}
    concurrent = True

    def encode(self, wave: np.ndarray) -> bytes:
        """The RMS as a float32."""
        return np.sqrt(np.mean(np.square(wave, dtype=np.float64))).astype("<f4").tobytes()

    def decode(self, data: bytes, num_samples: int) -> np.ndarray:
        """Gaussian noise; the level is its seed, so that clips differ."""
        rng = np.random.default_rng(int.from_bytes(data, "little"))
        level = np.frombuffer(data, "<f4")[0]
        return level * rng.standard_normal(num_samples, np.float32)


def open_systems(
    descriptions: Sequence[str], model: str, sampling: Mapping[str, Any]
) -> list[System]:
    """Makes systems ready to run.

    Args:
      descriptions: see `GRAMMAR`.
      model: of the systems gac@KBPS: a bundled name or a model folder.
      sampling: seed, steps, solver, guidance and temperature of gac, as for `Codec.decode`.

    Raises:
      UserError: one that is none, two of one name, or what a system needs is not there.
    """
    systems = [_open(text.strip(), model, sampling) for text in descriptions]
    names = [system.name for system in systems]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"--systems: two are called {name}; run one with an --output of its own"
            )
        if name == REFERENCE or not _FILE_NAME.fullmatch(name):
            raise UserError(f"--systems: {name!r} cannot be a file's name; take letters and digits")
    if not systems:
        raise UserError(f"--systems: none given; {GRAMMAR}")
    return systems


def _open(text: str, model: str, sampling: Mapping[str, Any]) -> System:
    if text == "identity":
        return Identity()
    if text == "noise":
        return Noise()
    if text.startswith("cmd:"):
        return external(text)
    found = _PATTERN.fullmatch(text)
    kind, folder, rate = found.group("kind", "folder", "rate") if found else ("", None, "")
    if kind == "gac":
        return Gac(folder, model, _number(text, rate), sampling)
    if kind in KINDS and folder:
        return Neural(kind, folder, _number(text, rate))
    if kind in PROGRAMS and not folder:
        return PROGRAMS[kind](rate)
    raise UserError(f"--systems: {text!r} is not known; {GRAMMAR}")


def _number(text: str, rate: str) -> float:
    try:
        return float(rate)
    except ValueError:
        raise UserError(f"--systems: {text}: {rate!r} is not a rate in kbit/s") from None
