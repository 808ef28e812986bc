"""Stopping a run between two steps when a signal asks for it."""

from __future__ import annotations

import signal


class Interrupted(Exception):
    """A signal arrived; the state has been saved and a later run goes on from it.

    Attributes:
      number: of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class StopSignal:
    """Notes SIGTERM and Ctrl-C while the `with` block runs; a second one acts as ever.

    Attributes:
      received: number of the signal that has arrived, 0 while there is none.
    """

    def __enter__(self) -> StopSignal:
        self.received = 0
        signals = (signal.SIGTERM, signal.SIGINT)
        self._previous = {number: signal.signal(number, self._note) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.received = number
        self.__exit__()
