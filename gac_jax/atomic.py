"""Files that are whole or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gac_jax.errors import UserError


def write(path: Path, data: bytes) -> None:
    """Writes a file, making its folder; a reader never sees, and a crash never leaves, half of it.

    Raises:
      UserError: the place cannot be written.
    """
    with replacing(path) as draft:
        draft.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a hidden place beside `path`; a file written there takes its name, if nothing fails.

    Folders are made as they are needed.

    Raises:
      UserError: the place cannot be written.
    """
    draft = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        os.replace(draft, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        if os.path.lexists(draft):
            draft.unlink()
