"""A model as a folder: config.json, weights.safetensors and README.md (its card).

The folder is all that `gac_jax.load` needs. Weights are stored as `gac_jax.storage` says and always
loaded as float32. The fingerprint is a digest of everything that gives codes their meaning:
encoder, quantiser and their configuration, but not the decoder, so that decoders of any size
trained on one frozen encoder read each other's files.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from gac_jax.errors import UserError
from gac_jax.storage import STORAGE, from_storage, to_storage

FORMAT = 2
SAMPLING = ("steps", "solver", "guidance", "temperature", "contrast")  # what a decoder does unasked
FINGERPRINTED = ("encoder", "quantizer")
ENTROPY_MODEL = "entropy_model"  # of the codes; whole numbers, stored as such
FROZEN = (*FINGERPRINTED, ENTROPY_MODEL)  # what models with the same codes have in common


def save(
    folder: Path,
    config: dict[str, Any],
    params: dict[str, Any],
    card: str,
    storage: str,
    frozen: dict[str, np.ndarray] | None = None,
) -> bytes:
    """Writes a model folder; an existing one is replaced only once the new one is whole.

    Args:
      folder: where to.
      config: JSON-able; must hold the entries named in `FINGERPRINTED`.
      params: nested dict of arrays with top-level keys encoder, quantizer, decoder, spectrum.
      card: text of README.md.
      storage: one of `STORAGE`.
      frozen: encoder and quantiser of another model, from `read_frozen`, to store instead of those
        in `params`, and its entropy model; if `config` describes them as that model's does, the
        fingerprint is its too.

    Returns:
      The fingerprint, 8 bytes.
    """
    if storage not in STORAGE:
        raise ValueError(f"storage must be one of {STORAGE}, not {storage!r}")
    learnt = {k: v for k, v in params.items() if k != ENTROPY_MODEL}
    tensors = to_storage(_flatten(learnt), storage)
    if frozen:
        tensors = {k: v for k, v in tensors.items() if not _is_of(FROZEN, k)} | frozen
    if not any(_is_of((ENTROPY_MODEL,), k) for k in tensors):
        config = {k: v for k, v in config.items() if k != ENTROPY_MODEL}  # it was of other codes
    return _write(folder, config, tensors, card)


def with_entropy_model(
    source: Path, target: Path, config: dict[str, Any], weights: dict[str, np.ndarray]
) -> bytes:
    """Writes a model once more, with an entropy model; all else stays bit for bit.

    Args:
      source: folder of the model.
      target: where to.
      config: of the entropy model, JSON-able.
      weights: its whole numbers, int8, by name.

    Returns:
      The fingerprint, which is as it was.

    Raises:
      UserError: see `load`.
    """
    record, tensors = _read(source)
    kept = {k: v for k, v in tensors.items() if not _is_of((ENTROPY_MODEL,), k)}
    added = {f"{ENTROPY_MODEL}.{k}": np.ascontiguousarray(v, np.int8) for k, v in weights.items()}
    card = (source / "README.md").read_text() if (source / "README.md").is_file() else ""
    return _write(target, {**record, ENTROPY_MODEL: config}, kept | added, card)


def _write(
    folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], card: str
) -> bytes:
    fingerprint = _fingerprint(config, tensors)
    config = {"format": FORMAT, **config, "fingerprint": fingerprint.hex()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as staging:
        draft = Path(staging, "new")
        draft.mkdir()
        save_file(tensors, draft / "weights.safetensors")
        (draft / "weights.safetensors").chmod(0o644)  # made for this user alone; unlike the rest
        (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (draft / "README.md").write_text(card)
        if folder.exists():
            os.replace(folder, Path(staging, "old"))
        os.replace(draft, folder)
    return fingerprint


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a model folder.

    Returns:
      (config, params as nested dict of float32 numpy arrays).

    Raises:
      UserError: the folder is missing, incomplete, damaged or of a later format.
    """
    config, tensors = _read(folder)
    return config, flax.traverse_util.unflatten_dict(from_storage(tensors), sep=".")


def read_frozen(folder: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of `FROZEN` bit for bit as they are stored.

    Rounded anew, the same weights would get another fingerprint. Raises as `load` does.
    """
    return {k: v for k, v in _read(folder)[1].items() if _is_of(FROZEN, k)}


def check(folder: Path, params: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compares the tensors of a folder with what its config calls for.

    Raises:
      UserError: names the first tensor that is missing, left over or of another shape.
    """
    found = {k: v.shape for k, v in _flatten(params).items()}
    wanted = {k: v.shape for k, v in _flatten(expected).items()}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"{folder}: weights do not fit config.json: {name} is "
                f"{found.get(name, 'missing')}, should be {wanted.get(name, 'absent')}"
            )


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    for name in ("config.json", "weights.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no model here ({name} is missing)")
    try:
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "weights.safetensors")
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise UserError(f"{folder}: damaged model ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder}: damaged model (config.json is not an object)")
    if config.get("format") != FORMAT:
        raise UserError(
            f"{folder}: model format {config.get('format')}, this program reads {FORMAT}"
        )
    return config, tensors


def _flatten(params: dict[str, Any]) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(params, sep=".")


def _fingerprint(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> bytes:
    digest = hashlib.sha256()
    digest.update(json.dumps([config[k] for k in FINGERPRINTED], sort_keys=True).encode())
    for name in sorted(tensors):
        if _is_of(FINGERPRINTED, name):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.digest()[:8]


def _is_of(parts: Sequence[str], name: str) -> bool:
    return name.split(".")[0] in parts
