"""Many processes as one program: joining them, and what they must do together.

JAX finds its peers by itself on TPU virtual machines and pods, under SLURM and Open MPI 4 and, with
its extra `k8s`, in Kubernetes jobs. Elsewhere flags or environment variables name them.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from gac_jax.errors import UserError

PATIENCE = 300  # seconds for all processes to come: a large slice boots in a few minutes

# Where a launcher says what a flag leaves out. What SLURM says, JAX reads.
ADDRESS = ("JAX_COORDINATOR_ADDRESS",)
COUNT = ("JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE")
INDEX = ("JAX_PROCESS_ID", "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX")


class Place(NamedTuple):
    """What is known of a group and of this process in it.

    Attributes:
      address: HOST:PORT where process 0 listens.
      num_processes: how many there are.
      process_id: number of this one, from 0.
    """

    address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def completed(self, environment: Mapping[str, str]) -> Place:
        """Adds what environment variables say of what is not known.

        Raises:
          UserError: what they say is no number, or the address is none.
        """
        address = self.address or _first(environment, ADDRESS)
        if address is not None and not re.fullmatch(r".+:\d+", address):
            raise UserError(f"process group: {address!r} should be HOST:PORT")
        return Place(
            address,
            _number(environment, COUNT) if self.num_processes is None else self.num_processes,
            _number(environment, INDEX) if self.process_id is None else self.process_id,
        )


def join(given: Place, patience: int = PATIENCE) -> None:
    """Makes this process one of its group, if it has one; to be called before any array is made.

    Process 0 prints what was found. A process alone stays as it is.

    Args:
      given: by the user; the environment adds to it.
      patience: seconds after which an incomplete group ends the process with exit code 2.

    Raises:
      UserError: what is known makes no group.
    """
    place = given.completed(os.environ)
    # Where there is one task, JAX would use one of its GPUs.
    if place.num_processes == 1 or (
        place.address is None and os.environ.get("SLURM_NTASKS") == "1"
    ):
        return
    try:
        _initialize(place, patience)
    except (ValueError, RuntimeError) as error:
        if place == Place() and "coordinator_address" in str(error):
            return  # JAX knows of no group either
        raise UserError(
            f"process group: {error} (found {place}); give --coordinator=HOST:PORT, "
            "--num_processes=N and, counted from 0, --process_id=I"
        ) from error
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        # Process 0 alone has its programs from the cache, and waits for ever in collectives for
        # those that the others compile anew (docs/decisions.md).
        jax.config.update("jax_enable_compilation_cache", False)
    if is_first() and jax.process_count() > 1:
        print(
            f"process group: {jax.process_count()} processes, {jax.device_count()} devices",
            flush=True,
        )


def is_first() -> bool:
    """Whether this process is the one that prints and writes for its group."""
    return jax.process_index() == 0


def gather(tree: Any) -> Any:
    """NumPy arrays of a tree of arrays that may be split over processes; all must call it."""

    def fetch(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(fetch, tree)


def check_shared(folder: Path) -> None:
    """Makes sure that all processes see the same folder; all must call it.

    Raises:
      UserError: some see another folder of that name.
    """
    if jax.process_count() == 1:
        return
    number = multihost_utils.broadcast_one_to_all(np.int32(secrets.randbits(31)))
    mark = folder / f".seen-by-all-{number}"
    if is_first():
        mark.touch()
    multihost_utils.sync_global_devices("marked")
    seen = multihost_utils.process_allgather(np.bool_(mark.exists()))
    if is_first():
        mark.unlink()
    if not seen.all():
        absent = ", ".join(map(str, np.flatnonzero(~seen)))
        raise UserError(
            f"{folder}: processes {absent} see another folder of that name than process 0; "
            "choose one on a file system that all hosts share"
        )


def _initialize(place: Place, patience: int) -> None:
    # The service would give the steps of a save to a second clock; `training.stop` needs none.
    jax.config.update("jax_enable_preemption_service", False)
    # Left alone, JAX aborts when its time is up, with a stack trace for a message.
    alarm = threading.Timer(patience, _give_up, (place, patience))
    alarm.daemon = True
    alarm.start()
    try:
        with warnings.catch_warnings():  # in Kubernetes, of the extra `k8s`, even to a lone process
            warnings.simplefilter("ignore")
            jax.distributed.initialize(
                *place,
                cluster_detection_method=None if None in place else "deactivate",
                initialization_timeout=patience + 60,
            )
    finally:
        alarm.cancel()


def _give_up(place: Place, patience: int) -> None:
    """Ends the process, from beside the thread that waits for its group."""
    many = f"all {place.num_processes}" if place.num_processes else "all"
    where = f" to {place.address}" if place.address else ""
    print(
        f"error: process group: not {many} processes came{where} in {patience} s"
        f"{_silence(place.address)}; see that each runs, with the same address and number of "
        "processes",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def _silence(address: str | None) -> str:
    """Tells an address where nobody is from one where somebody waits."""
    if address is None:
        return ""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError as error:
        return f" (no answer from there: {error})"
    return ""


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)


def _number(environment: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    text = _first(environment, names)
    if text is not None and not text.isdigit():
        raise UserError(f"process group: {' or '.join(names)} is {text!r}, should be a number")
    return None if text is None else int(text)
