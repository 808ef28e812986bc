"""Stopping a run between two steps when a signal asks for it."""

from __future__ import annotations

import signal


class Interrupted(Exception):
    """A signal arrived; the state has been saved and a later run goes on from it."""


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a flag while the `with` block runs.

    Attributes:
      requested: whether a signal has arrived.
    """

    def __enter__(self) -> StopSignal:
        self.requested = False
        signals = (signal.SIGTERM, signal.SIGINT)
        self._previous = {number: signal.signal(number, self._request) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, *_: object) -> None:
        self.requested = True
