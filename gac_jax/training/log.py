"""Training metrics: terminal, progress bar and TensorBoard, and the check that they are finite."""

from __future__ import annotations

import os
import sys
import time
from typing import Protocol

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from gac_jax.errors import UserError
from gac_jax.stages.task import Metrics


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


class Log:
    """Reads the metrics of a step once the next one is dispatched, so that devices never wait."""

    def __init__(self, folder: str, name: str, loop: Intervals, first_step: int) -> None:
        """Opens logs of the stage `name` in `folder`; only the first process writes."""
        self._loop = loop
        self._is_writer = jax.process_index() == 0
        self._writer = _writer(folder, first_step) if self._is_writer else None
        self._progress = tqdm(
            total=loop.steps,
            initial=first_step,
            desc=name,
            unit="step",
            disable=None if self._is_writer else True,  # None: unless this is no terminal
        )
        self._pending: tuple[int, Metrics] | None = None
        self._last_line = (first_step, time.perf_counter())

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()
        if self._writer:
            self._writer.close()

    def step(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a dispatched step and reads those of the step before.

        Raises:
          UserError: too many updates in a row were not finite.
        """
        self.flush()
        self._pending = (step, metrics)
        self._progress.update()

    def flush(self) -> None:
        """Reads the metrics that are still pending; raises as `step` does."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        if int(metrics["skipped"]) > self._loop.max_skipped:
            raise UserError(
                f"{self._loop.max_skipped + 1} updates in a row were not finite, the last at step "
                f"{step}; lower the learning rate or look at the data"
            )
        if step % self._loop.log_every == 0:
            values = {k: float(v) for k, v in jax.device_get(metrics).items()}
            self.write(step, "train", {**values, "seconds_per_step": self._seconds_per_step(step)})

    def write(self, step: int, group: str, values: dict[str, float]) -> None:
        """One line and one point per value; values that are not finite are left out."""
        finite = {k: v for k, v in values.items() if np.isfinite(v)}
        if self._writer is None or not finite:
            return
        for name, value in finite.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)
        text = "  ".join(f"{name} {value:.4g}" for name, value in finite.items())
        self._progress.write(f"{group} step {step}: {text}")
        sys.stdout.flush()  # a log file shows it at once, too

    def _seconds_per_step(self, step: int) -> float:
        (last, since), now = self._last_line, time.perf_counter()
        self._last_line = (step, now)
        return (now - since) / (step - last)


def _writer(folder: str, first_step: int) -> SummaryWriter:
    """TensorBoard's; it hides what a killed run logged after its last checkpoint."""
    return SummaryWriter(os.path.join(folder, "logs"), purge_step=first_step + 1)
