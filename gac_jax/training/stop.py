"""Stopping a run between two steps when a signal asks for it, on all hosts at the same step."""

from __future__ import annotations

import signal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


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

    So does one that came too late for the block to heed it, at its end.

    Attributes:
      received: number of the signal that has arrived here, 0 while there is none.
    """

    def __init__(self, mesh: Mesh) -> None:
        """Stands for the processes that the mesh spans."""
        self._split = NamedSharding(mesh, P(mesh.axis_names))
        self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))
        self._devices = len(mesh.local_devices)
        self._asked: jax.Array | None = None

    def __enter__(self) -> StopSignal:
        self.received = 0
        signals = (signal.SIGTERM, signal.SIGINT)
        self._previous = {number: signal.signal(number, self._note) for number in signals}
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._restore()
        if self.received and kind is None:
            signal.raise_signal(self.received)

    def agreed(self) -> int:
        """Number of the signal that any process has received, the same for all; 0 if there is none.

        Every process calls it once before each step. With several of them the answer is that of
        the step before: all devices take the maximum behind the step that is under way, and
        nobody waits for it.
        """
        if jax.process_count() == 1:
            return self.received
        here = np.full(self._devices, self.received, np.int32)
        everywhere = jax.make_array_from_process_local_data(self._split, here)
        before, self._asked = self._asked, self._largest(everywhere)
        return 0 if before is None else int(before)

    def _note(self, number: int, _: object) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
