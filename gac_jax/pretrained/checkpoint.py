"""Weight folders in Hugging Face layout: config.json and tensors, in one file or in shards."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes  # also registers bfloat16 with numpy, which reading such tensors needs
import numpy as np
from safetensors import SafetensorError, safe_open

from gac_jax.errors import UserError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
REMEDY = "save the model with transformers: save_pretrained(folder)"
# safetensors' names of the types that are not quantised.
FLOATS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class Checkpoint:
    """A weight folder, opened; tensors are read when they are asked for.

    Use it in a `with` statement, which closes its files.

    Attributes:
      folder: holds config.json and either model.safetensors or, named by
        model.safetensors.index.json, its shards. The single file goes first, as in transformers.
      config: what config.json says.
      keys: the names of all tensors.

    Raises:
      UserError: the folder or one of its files is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = _read_config(folder / "config.json")
        self._stack = ExitStack()
        self._opened: dict[Path, tuple[Any, frozenset[str]]] = {}  # from safe_open; its tensors
        self._files = self._list_tensors()  # tensor: its file
        self.keys = frozenset(self._files)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the weight files; tensors that were read stay valid."""
        self._opened.clear()
        self._stack.close()

    def path_of(self, name: str) -> Path:
        """Returns the file that holds a tensor, or should hold it if it is missing."""
        if name in self._files:
            return self._files[name]
        single = self.folder / WEIGHTS
        return single if single.is_file() else self.folder / INDEX

    def tensor(self, name: str) -> np.ndarray:
        """Returns a tensor as stored, of dtype float64, float32, float16 or bfloat16.

        Args:
          name: of the tensor, in full.

        Raises:
          UserError: the tensor is missing or quantised, or its file is damaged.
        """
        self._checked_shape(name)
        path = self.path_of(name)
        try:
            return self._open(path)[0].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error

    def floats(self, name: str, *shape: int) -> np.ndarray:
        """Returns a tensor as float32.

        Args:
          name: of the tensor, in full.
          *shape: the one it must have. It is checked before the tensor is read.

        Raises:
          UserError: as `tensor`, or the shape is another.
        """
        stored = self._checked_shape(name)
        if stored != shape:
            raise UserError(
                f"{self.path_of(name)}: tensor {name} has shape {stored}, config.json asks for "
                f"{shape}; use the config.json that came with the weights"
            )
        return self.tensor(name).astype(np.float32)

    def _list_tensors(self) -> dict[str, Path]:
        """Maps each tensor to its file."""
        single, index = self.folder / WEIGHTS, self.folder / INDEX
        if single.is_file():
            return dict.fromkeys(self._open(single)[1], single)
        if not index.is_file():
            raise UserError(f"{single}: no such file, and no {INDEX} beside it; {REMEDY}")
        files = _read_index(index)
        for path in sorted(set(files.values())):
            if not path.is_file():
                raise UserError(f"{path}: no such file, but {INDEX} names it; get it too")
        return files

    def _open(self, path: Path) -> tuple[Any, frozenset[str]]:
        if path not in self._opened:
            try:
                file = self._stack.enter_context(safe_open(path, framework="numpy"))
            except (SafetensorError, OSError) as error:
                raise _damaged(path, error) from error
            self._opened[path] = file, frozenset(file.keys())
        return self._opened[path]

    def _checked_shape(self, name: str) -> tuple[int, ...]:
        """Looks up the shape of a tensor that is there and not quantised."""
        path = self.path_of(name)
        if name not in self.keys or name not in self._open(path)[1]:
            raise UserError(f"{path}: tensor {name} is missing; get the model again, whole")
        header = self._open(path)[0].get_slice(name)
        dtype = header.get_dtype()
        if dtype not in FLOATS:
            raise UserError(f"{path}: tensor {name} is {dtype}; use weights that are not quantised")
        return tuple(header.get_shape())


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a folder with a Hugging Face model")
    return _read_object(path)


def _read_index(path: Path) -> dict[str, Path]:
    files = _read_object(path).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise UserError(f"{path}: no weight_map that names the shards; get it again")
    for name in files.values():
        # A shard lies beside its index: one named elsewhere is an error, or an attack.
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
            raise UserError(f"{path}: {name!r} is not the name of a shard; get it again")
    return {tensor: path.with_name(name) for tensor, name in files.items()}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); get it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; get it again")
    return value


def _damaged(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{path}: damaged safetensors file ({reason}); get it again")
