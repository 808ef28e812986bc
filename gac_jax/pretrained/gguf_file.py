"""GGUF, the one-file format of llama.cpp: metadata, and tensors in many quantised types.

Reading needs the optional package `gguf`, which knows the layout of every type.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gac_jax.errors import UserError

# What the reader of a damaged file ends in depends on which bytes are wrong.
DAMAGE = (ValueError, IndexError, KeyError, OSError)


class GgufFile:
    """A GGUF file, opened.

    Attributes:
      path: the file.
      names: of its tensors.

    Raises:
      UserError: there is no such file, it is no whole GGUF file, or `gguf` is not installed.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path}: no such file; name a .gguf file or a Hugging Face folder")
        try:
            from gguf import GGUFReader  # optional
        except ImportError as error:
            raise UserError(f'{path}: GGUF files need: pip install "gac_jax[text]"') from error
        try:
            self._reader = GGUFReader(path)
        except DAMAGE as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: damaged GGUF file ({reason}); get it again") from error
        self.path = path
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.names = frozenset(self._tensors)

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the metadata under a key: a number, str, bool or list."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor, (out, in) of a matrix.

        Raises:
          UserError: the tensor is missing.
        """
        if name not in self._tensors:
            raise UserError(f"{self.path}: tensor {name} is missing; get the file again, whole")
        # GGUF names the axis that is contiguous in memory first.
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def floats(self, name: str, *shape: int) -> np.ndarray:
        """Returns a tensor as float32, dequantised.

        Args:
          name: of the tensor.
          *shape: the one it must have, (out, in) of a matrix.

        Raises:
          UserError: the tensor is missing, has another shape or a type that `gguf` cannot read.
        """
        from gguf.quants import dequantize

        if self.shape(name) != shape:
            raise UserError(
                f"{self.path}: tensor {name} has shape {self.shape(name)}, the file's metadata ask "
                f"for {shape}; get the file again"
            )
        tensor = self._tensors[name]
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise UserError(
                f"{self.path}: tensor {name} has type {kind}, which the package gguf cannot read; "
                "use a file of another quantisation, such as Q8_0"
            ) from error
        return np.asarray(values, np.float32).reshape(shape)
