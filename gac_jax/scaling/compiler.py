"""Compiles afresh and listens to what XLA's partitioner complains of."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

COMPLAINT = "Involuntary full rematerialization"


class Compiled(NamedTuple):
    """A compiled program.

    Attributes:
      program: `jax.stages.Compiled`.
      complaints: arrays that every chip had to hold whole for a while, because the partitioner
        found no other way from one layout to the next.
    """

    program: Any
    complaints: list[str]


def compile_and_listen(lowered: Any, **options: Any) -> Compiled:
    """Compiles `jax.stages.Lowered`, without the compilation cache: a cached program says nothing.

    What else XLA writes to stderr meanwhile is dropped; if it fails, it raises.

    Args:
      lowered: the program.
      **options: of XLA.
    """
    with _uncached(), _captured_stderr() as told:
        program = lowered.compile(compiler_options=options or None)
    return Compiled(program, [line for line in told if COMPLAINT in line])


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    from jax.experimental.compilation_cache import compilation_cache  # late: only here

    before = jax.config.values["jax_enable_compilation_cache"]
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # JAX asks for the switch once only
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


@contextlib.contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """The lines that C++ writes to stderr inside; they are there after it."""
    told: list[str] = []
    kept = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield told
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            told.extend(file.read().splitlines())
