"""The .gacx file: a decoder that was compiled ahead of time, and needs no model code to run.

It is a safetensors file. Its tensors are the weights, as the model folder stores them, and one more
with a serialised `jax.export` program that decodes a batch of windows; its metadata is a JSON
record of what they are. `gac_jax.aot` makes it. Reading it runs no code but that program.

Imports JAX, NumPy and safetensors, and those modules of this package that need NumPy alone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gac_jax.bitstream import Tokens
from gac_jax.errors import UserError
from gac_jax.rates import SPECTRA_PER_FRAME
from gac_jax.signal.loudness import restored
from gac_jax.storage import from_storage
from gac_jax.windows import Window, join, plan

FORMAT = 1
_PROGRAM, _RECORD = "program", "gacx"  # names of the tensor and of the metadata entry
_AGAIN = "export it again with python -m gac_jax.export"


class Decoder:
    """A .gacx file ready to decode; the first window of each size is compiled for this machine.

    Attributes:
      record: what the file says of itself, see `gac_jax.aot.pack`.
    """

    def __init__(self, path: Path) -> None:
        """Loads the file.

        Raises:
          UserError: not a .gacx file, a damaged one, or one for other platforms or a later JAX.
        """
        self.record, program, weights = read(path)
        here, platforms = export.default_export_platform(), self.record["platforms"]
        if here not in platforms:
            raise UserError(
                f"{path}: is for {', '.join(platforms)}, but JAX runs on {here} here; set "
                f"JAX_PLATFORMS={platforms[0]}, or export it with --platforms={here}"
            )
        if jax.__version_info__ < _numbers(self.record["jax"]):  # programs load in later ones only
            raise UserError(
                f"{path}: made with JAX {self.record['jax']}, this is {jax.__version__}; update "
                "JAX, or export it again with this one"
            )
        self._program = jax.jit(export.deserialize(bytearray(program)).call)
        self._weights = jax.device_put(from_storage(weights))

    def decode(self, tokens: Tokens, seed: int = 0) -> np.ndarray:
        """Decodes tokens to (num_samples,) float32 at 32 kHz; the same seed gives the same audio.

        Raises:
          UserError: tokens of another model, or a seed that is not within 0 .. 2^32 - 1.
        """
        model = self.record["fingerprint"]
        if tokens.fingerprint.hex() != model:
            raise UserError(
                f"these tokens were made by model {tokens.fingerprint.hex()}, but "
                f"'{self.record['name']}' is {model}; decode with the model that encoded them"
            )
        if not 0 <= seed < 2**32:
            raise UserError(f"seed must be 0 .. 2^32 - 1, not {seed}")
        windows = plan(tokens.num_frames, self.record["window"])
        pieces = ((window, self._run(tokens, window, seed)) for window in windows)
        return np.concatenate(list(restored(join(pieces), tokens.levels, tokens.num_samples)))

    def _run(self, tokens: Tokens, window: Window, seed: int) -> np.ndarray:
        codes = np.zeros((1, self.record["codebooks"], window.bucket), np.int32)
        present = tokens.codes[:, window.start : window.end]
        codes[0, : len(present), : window.frames] = present
        numbers = (tokens.num_residuals, window.frames, window.start * SPECTRA_PER_FRAME)
        rate, frames, start = np.array(numbers, np.int32)[:, None]
        wave = self._program(self._weights, codes, rate, frames, start, np.uint32(seed))
        return np.asarray(wave)[0]


def to_bytes(record: dict[str, Any], program: bytes, weights: dict[str, np.ndarray]) -> bytes:
    """The .gacx file of a program and its weights."""
    tensors = {**weights, _PROGRAM: np.frombuffer(program, np.uint8)}
    record = {"format": FORMAT, **record}
    signed = {**record, "sha256": _digest(record, tensors)}
    return save(tensors, {_RECORD: json.dumps(signed)})


def read(path: Path) -> tuple[dict[str, Any], bytes, dict[str, np.ndarray]]:
    """Reads a .gacx file.

    Returns:
      (record, program, weights).

    Raises:
      UserError: it cannot be read, is none, is damaged, or is of a later format.
    """
    try:
        with safe_open(path, "numpy") as file:
            record = json.loads((file.metadata() or {}).get(_RECORD, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path}: cannot be read ({reason}); give a .gacx file") from error
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: no .gacx file, or a damaged one; {_AGAIN}") from error
    if not isinstance(record, dict) or _PROGRAM not in tensors:
        raise UserError(f"{path}: holds no exported decoder; {_AGAIN}")
    if record.get("format") != FORMAT:
        found = record.get("format")
        raise UserError(f"{path}: format {found}, this program reads {FORMAT}; {_AGAIN}")
    if record.pop("sha256", None) != _digest(record, tensors):
        raise UserError(f"{path}: damaged (checksum mismatch); copy it, or {_AGAIN}")
    return record, tensors.pop(_PROGRAM).tobytes(), tensors


def _digest(record: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
