"""Chips on paper: what each can do, and a slice of them to compile for."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from gac_jax.errors import UserError

GIB = 2**30
NODE = 8  # GPUs that NVLink joins
EXAMPLES = "v5e:4x4, v5p:4x4x4, h100:8 or cpu:8"
# For a host that has no TPU: libtpu would ask the cloud's metadata server what it has, and lock out
# other processes from it.
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Chip(NamedTuple):
    """What one chip can do at best.

    Attributes:
      flops: bfloat16 operations per second, dense.
      memory: bytes.
      bandwidth: bytes per second between chip and memory.
      link: bytes per second that it sends to chips of the slice (GPUs: of the node).
      network: the same beyond that, its share of the host's adapters; 0 for not known.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float = 0.0


# TPUs: docs.cloud.google.com/tpu/docs, pages v4, v5e, v5p, v6e. Their "bidirectional inter-chip
# interconnect bandwidth" is halved: what a chip sends; their "data center network bandwidth" is, of
# v5e and v6e, that of a pod of 256. GPUs, SXM: NVIDIA's data sheets of A100 80 GB, H100 and H200;
# NVLink halved likewise; network as in DGX systems, an adapter of 200 or 400 Gbit/s for each GPU.
CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1.2e12, 300e9),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, 6.4e12 / 8 / 256),
    "v5p": Chip(459e12, 95 * GIB, 2.765e12, 600e9, 50e9 / 8),
    "v6e": Chip(918e12, 32 * GIB, 1.638e12, 400e9, 25.6e12 / 8 / 256),
    "a100": Chip(312e12, 80e9, 2.039e12, 300e9, 25e9),
    "h100": Chip(989e12, 80e9, 3.35e12, 450e9, 50e9),
    "h200": Chip(989e12, 141e9, 4.8e12, 450e9, 50e9),
}


class Topology(NamedTuple):
    """Slices of chips that need not be at hand.

    Attributes:
      name: of one slice, 'v5e:4x4'.
      kind: a key of `CHIPS`, or 'cpu'.
      chips: how many in all slices together.
      slices: how many, all alike.
    """

    name: str
    kind: str
    chips: int
    slices: int = 1

    def __str__(self) -> str:
        return self.name if self.slices == 1 else f"{self.slices} x {self.name}"

    @property
    def is_tpu(self) -> bool:
        """Whether TPUs are meant."""
        return self.kind.startswith("v")

    @property
    def chip(self) -> Chip | None:
        """What each chip can do; None for a CPU, of which nothing is said."""
        return CHIPS.get(self.kind)

    @property
    def compiled_by(self) -> str:
        """'tpu' where libtpu compiles for it, else 'cpu'."""
        return "tpu" if self.is_tpu and importlib.util.find_spec("libtpu") else "cpu"

    @property
    def link(self) -> float:
        """Bytes per second that a chip sends to others of its slice; GPUs, to all others."""
        chip = self.chip
        if chip is None:
            return math.nan
        return chip.network if not self.is_tpu and self.chips > NODE else chip.link


def parse(name: str, slices: int = 1) -> Topology:
    """Reads 'v5p:4x4x4' (TPU slices, chips along each side) or 'h100:8' and 'cpu:8' (a number).

    Args:
      name: of one slice.
      slices: how many of them, joined by a slower network.

    Raises:
      UserError: of another form, of chips that are not in `CHIPS`, or several slices of no TPUs.
    """
    match = re.fullmatch(r"(\w+):([1-9]\d*(?:x[1-9]\d*)*)", name)
    if match is None or match[1] not in (*CHIPS, "cpu"):
        known = ", ".join(CHIPS)
        raise UserError(
            f"--topology={name}: not a slice like {EXAMPLES} (chips known: {known}, cpu)"
        )
    found = Topology(name, match[1], slices * math.prod(map(int, match[2].split("x"))), slices)
    if slices > 1 and not found.is_tpu:
        raise UserError(f"--num_slices={slices}: of TPUs only; give all {match[1]} in --topology")
    return found


def devices(topology: Topology) -> Sequence[Any]:
    """Devices to compile for: of the slice where libtpu is installed, else of the CPU.

    Raises:
      UserError: libtpu knows no such slice, or JAX has started with fewer CPU devices.
    """
    if topology.compiled_by == "tpu":
        return _described(topology)
    return _pretended(topology)


def _described(topology: Topology) -> Sequence[Any]:
    from jax.experimental import topologies  # late: only here

    for name, value in NO_TPU.items():
        os.environ.setdefault(name, value)
    # A v4 chip is two cores, which JAX drives as one only if asked to.
    options: dict[str, Any] = {"chip_config_name": "megacore"} if topology.kind == "v4" else {}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **options
        )
    except jax.errors.JaxRuntimeError as error:
        told = str(error).splitlines()[0]
        raise UserError(f"--topology={topology.name}: no such slice ({told})") from error
    return description.devices


def _pretended(topology: Topology) -> Sequence[Any]:
    with contextlib.suppress(RuntimeError):  # JAX has started; its devices may be enough
        jax.config.update("jax_num_cpu_devices", topology.chips)
    found = jax.devices("cpu")
    if len(found) < topology.chips:
        raise UserError(
            f"--topology={topology.name}: JAX has started with {len(found)} CPU devices; "
            "name them before it does, with jax_num_cpu_devices"
        )
    return found[: topology.chips]
