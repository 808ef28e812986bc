"""Command lines beside each other in one process: absl knows one flag of each name."""

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from absl import flags

STORES = ("__flags", "__flags_by_module", "__flags_by_module_id")
State = dict[str, Any]


def load(name: str) -> tuple[ModuleType, State]:
    """Imports a command line whose flags may bear names that others have.

    Returns:
      The module, and the flags it sees, for `flags_of`.
    """
    state = {store: dict(flags.FLAGS.__dict__[store]) for store in STORES}
    for module in [m for m in state["__flags_by_module"] if m.startswith("gac_jax.")]:
        for flag in state["__flags_by_module"].pop(module):
            state["__flags"].pop(flag.name, None)
            state["__flags"].pop(flag.short_name, None)
    with flags_of(state):
        return importlib.import_module(name), state


@contextlib.contextmanager
def flags_of(state: State) -> Iterator[None]:
    """Has the process see these flags for a while, and those of no other command line."""
    seen = flags.FLAGS.__dict__  # of this object, whatever flags.FLAGS is when it ends
    others = {store: seen[store] for store in STORES}
    seen.update(state)
    try:
        yield
    finally:
        seen.update(others)
