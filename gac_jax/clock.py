"""A clock that leaves compilation out, so that a short run is not blamed for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

_COMPILING = "/jax/core/compile/"  # JAX's events for tracing, lowering and compiling begin so


class CompileClock:
    """Stands still while JAX traces and compiles."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watches JAX within a `with` statement."""
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(self._listen)

    @property
    def compiling(self) -> float:
        """Seconds that the clock stood still."""
        return sum(end - start for start, end in self._spans)

    def now(self) -> float:
        """Seconds since some moment."""
        return time.perf_counter() - self.compiling

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if not event.startswith(_COMPILING):
            return
        end = time.perf_counter()
        # A function traced within another reports first; the other's span contains it.
        while self._spans and self._spans[-1][0] >= end - duration_secs:
            self._spans.pop()
        self._spans.append((end - duration_secs, end))
