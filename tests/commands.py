"""Command lines beside each other in one process: absl knows one flag of each name."""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from absl import flags
from absl.testing import flagsaver

from gac_jax import cli

STORES = ("__flags", "__flags_by_module", "__flags_by_module_id")
State = dict[str, Any]


class Result(NamedTuple):
    code: object
    out: str
    err: str


Run = Callable[..., Result]


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


@contextlib.contextmanager
def runner(
    command: tuple[ModuleType, State],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: Callable[..., Sequence[str]],
) -> Iterator[Run]:
    """Runs a command line in this process.

    Args:
      command: as `load` returns it.
      monkeypatch: the fixture.
      capsys: the fixture.
      words: makes the whole command line, its name first, of a call's arguments.
    """
    module, state = command
    with flags_of(state):
        own = flags.FlagValues()  # flags of other commands, the required ones too, are not its own
        for flag in flags.FLAGS.get_flags_for_module(module.__name__):
            own[flag.name] = flag
        flags.FLAGS.mark_as_parsed()
        monkeypatch.setattr(flags, "FLAGS", own)

        def call(*arguments: str) -> Result:
            code: object = 0
            saved = flagsaver.save_flag_values(own)
            try:
                cli._parse(words(*arguments))
                cli._guard(module.main)
            except SystemExit as exit_:
                code = exit_.code
            finally:
                flagsaver.restore_flag_values(saved, own)
            return Result(code, *capsys.readouterr())

        yield call
