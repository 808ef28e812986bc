"""Training metrics: terminal, progress bar and TensorBoard, and the check that they are finite."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

from gac_jax.errors import UserError
from gac_jax.stages.task import Metrics

MAX_NAMES = 20  # clips of a bad batch that are named


class Intervals(Protocol):
    """What `Log` reads of the loop's configuration."""

    @property
    def steps(self) -> int:
        """Steps in the stage."""

    @property
    def log_every(self) -> int:
        """Steps between log lines."""

    @property
    def max_skipped(self) -> int:
        """Non-finite updates in a row that are borne."""


def numbered(clips: np.ndarray) -> list[str]:
    """Names for clips of which only the numbers (B,) are known."""
    return [f"clip {number}" for number in clips]


class Log:
    """Reads the metrics of a step once the next one is dispatched, so that devices never wait."""

    def __init__(
        self,
        folder: str,
        name: str,
        loop: Intervals,
        first_step: int,
        names: Callable[[np.ndarray], list[str]] = numbered,
    ) -> None:
        """Opens logs of the stage `name` in `folder`; only the first process writes.

        Args:
          folder: of the stage.
          name: of the stage.
          loop: lengths and intervals.
          first_step: where the run starts or goes on.
          names: (clip, of a batch) -> what to call these clips.

        Raises:
          UserError: the folder cannot be written.
        """
        self._loop, self._names = loop, names
        self._is_writer = jax.process_index() == 0
        self._points = Points(os.path.join(folder, "logs"), first_step) if self._is_writer else None
        self._progress = tqdm(
            total=loop.steps,
            initial=first_step,
            desc=name,
            unit="step",
            disable=None if self._is_writer else True,  # None: unless this is no terminal
        )
        self._pending: tuple[int, Metrics, np.ndarray | None] | None = None
        self._left_out = 0
        self._last_line = (first_step, time.perf_counter())

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()
        if self._points:
            self._points.close()

    def step(self, step: int, metrics: Metrics, clips: np.ndarray | None = None) -> None:
        """Takes the metrics of a dispatched step and reads those of the step before.

        Args:
          step: its number.
          metrics: scalars; `skipped` is the number of updates left out in a row.
          clips: (b,) int32, the clips of this process's share of the batch.

        Raises:
          UserError: too many updates in a row were not finite, or the log cannot be written.
        """
        self.flush()
        self._pending = (step, metrics, clips)
        self._progress.update()

    def flush(self) -> None:
        """Reads the metrics that are still pending; raises as `step` does."""
        if self._pending is None:
            return
        (step, metrics, clips), self._pending = self._pending, None
        if skipped := int(metrics["skipped"]):
            self._left_out += 1
            self._tell_left_out(step, skipped, "" if clips is None else f" ({self._said(clips)})")
        if step % self._loop.log_every == 0:
            values = {k: float(v) for k, v in jax.device_get(metrics).items()}
            self.write(step, "train", {**values, "seconds_per_step": self._seconds_per_step(step)})

    def write(self, step: int, group: str, values: dict[str, float]) -> None:
        """One line and one point per value; values that are not finite are left out."""
        finite = {k: v for k, v in values.items() if np.isfinite(v)}
        if self._points is None or not finite:
            return
        self._points.write(step, {f"{group}/{name}": value for name, value in finite.items()})
        text = "  ".join(f"{name} {value:.4g}" for name, value in finite.items())
        self._say(f"{group} step {step}: {text}")

    def _tell_left_out(self, step: int, skipped: int, batch: str) -> None:
        if skipped > self._loop.max_skipped:
            raise UserError(
                f"{skipped} updates in a row were not finite, the last at step {step}{batch}; "
                "lower the learning rate or look at the data"
            )
        if self._is_writer:
            self._say(
                f"train step {step}: update left out, it is not finite{batch}; {skipped} in a "
                f"row, {self._left_out} since the start"
            )

    def _said(self, clips: np.ndarray) -> str:
        names = list(dict.fromkeys(self._names(clips)))
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        return ", ".join(names[:MAX_NAMES]) + more

    def _say(self, line: str) -> None:
        self._progress.write(line)
        sys.stdout.flush()  # a log file shows it at once, too

    def _seconds_per_step(self, step: int) -> float:
        (last, since), now = self._last_line, time.perf_counter()
        self._last_line = (step, now)
        return (now - since) / (step - last)


class Points:
    """TensorBoard's curves, written at once.

    The writer that tensorboardX offers for this hands points to a thread of its own. On a full
    disk that thread dies, and the run waits for it for ever.
    """

    def __init__(self, folder: str, first_step: int) -> None:
        """Opens a file in `folder`, which hides what a killed run logged after its checkpoint."""
        self._folder = folder
        try:
            os.makedirs(folder, exist_ok=True)
            self._file = EventsWriter(os.path.join(folder, "events"))
        except OSError as error:
            raise self._refused(error) from error
        start = SessionLog(status=SessionLog.START)
        self._add(Event(wall_time=time.time(), step=first_step + 1, session_log=start))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds one point to each curve.

        Raises:
          UserError: the file cannot be written.
        """
        now = time.time()
        self._add(
            *(Event(wall_time=now, step=step, summary=scalar(k, v)) for k, v in values.items())
        )

    def close(self) -> None:
        """Closes the file; all points are in it."""
        with contextlib.suppress(OSError):  # of points that could not be written, and were told
            self._file.close()

    def _add(self, *events: Event) -> None:
        try:
            for event in events:
                self._file.write_event(event)
            self._file.flush()
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> UserError:
        return UserError(
            f"{self._folder}: the log cannot be written ({error.strerror}); see to that, then run "
            "again to go on from the last checkpoint"
        )
