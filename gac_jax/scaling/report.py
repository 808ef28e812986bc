"""A forecast in words, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from jax.sharding import Mesh

from gac_jax.scaling.chips import GIB, Topology
from gac_jax.scaling.forecast import Forecast


def record(
    name: str, topology: Topology, mesh: Mesh, forecasts: Sequence[Forecast]
) -> dict[str, Any]:
    """The report for machines."""
    return {
        "config": name,
        "topology": topology.name,
        "slices": topology.slices,
        "chips": topology.chips,
        "mesh": dict(mesh.shape),
        "compiled_for": mesh.devices.flat[0].device_kind,
        "programs": {one.program: one.record(topology) for one in forecasts},
        "not_checked": not_checked(topology),
    }


def lines(
    name: str, topology: Topology, mesh: Mesh, forecasts: Sequence[Forecast]
) -> Iterator[str]:
    """The report for people."""
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    kind = mesh.devices.flat[0].device_kind
    yield f"{name} on {topology}: {topology.chips} chips ({axes}); compiled for {kind}"
    for one in forecasts:
        yield from _of(one, topology)
    yield from (f"not checked: {text}" for text in not_checked(topology))


def not_checked(topology: Topology) -> list[str]:
    """What the report leaves open."""
    told = ["times are the least that data sheets allow; nothing has run"]
    if topology.compiled_by == "tpu":
        if topology.slices > 1 and topology.chip and not topology.chip.network:
            told.append("how long chips wait for other slices; their network is not known")
        return told
    told.append(
        "temporaries and collectives are those of XLA's CPU compiler; the chip's own fuses and "
        "reduces differently, so that whether it fits is open"
    )
    if topology.is_tpu:
        told.append('libtpu is not installed (pip install -e ".[tpu]")')
    if topology.slices > 1:
        told.append("what goes between slices; all chips are taken to be in one")
    return told if topology.chip else told[1:]


def _of(one: Forecast, topology: Topology) -> Iterator[str]:
    millions = one.parameters / 1e6
    yield f"{one.program}: {millions:.1f} M parameters, {one.audio:.0f} s of audio a call"
    if one.problem:
        yield f"  DOES NOT FIT: {one.problem}"
        yield "  remedies: remat, a larger mesh.fsdp, a smaller batch_size, more chips"
    else:
        yield f"  memory per chip: {_memory(one, topology)}"
    share, tera = 100 * one.recomputed / max(one.flops, 1), one.flops / 1e12
    yield f"  computation: {tera:.4g} TFLOP a call on all chips, {share:.0f} % recomputed"
    if one.problem:
        return
    yield f"  collectives per chip: {_collectives(one)}"
    if one.complaints:
        yield f"  {one.complaints} arrays are held whole by every chip for a while (partitioner)"
    if topology.chip:
        yield f"  {_time(one, topology)}"


def _memory(one: Forecast, topology: Topology) -> str:
    parts = " + ".join(f"{one.memory[k] / GIB:.2f} {k}" for k in ("arguments", "temporaries"))
    new = one.memory["results"] - one.memory["shared"]
    text = f"{parts} + {new / GIB:.2f} new results = {one.memory['total'] / GIB:.2f} GiB"
    if topology.chip is None:
        return text
    verdict = {True: "fits", False: "DOES NOT FIT", None: "cannot tell whether it fits"}[one.fits]
    return f"{text} of {topology.chip.memory / GIB:.1f}: {verdict}"


def _collectives(one: Forecast) -> str:
    if not one.collectives:
        return "none"
    return ", ".join(
        f"{kind} {found['count']} x, {found['bytes'] / 1e9:.3g} GB sent"
        for kind, found in one.collectives.items()
    )


def _time(one: Forecast, topology: Topology) -> str:
    parts = ", ".join(f"{name} {1e3 * value:.3g}" for name, value in one.seconds.items())
    hours = one.audio / one.step if one.step else math.inf
    return (
        f"at best {1e3 * one.step:.3g} ms a call ({parts}): {hours:,.0f} hours of audio an hour, "
        f"{100 * one.utilisation(topology):.0f} % of peak (MFU)"
    )
