"""What a program would take on a slice of chips: bytes, operations, collectives, least time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gac_jax.scaling.chips import Topology
from gac_jax.scaling.compiler import Compiled, compile_and_listen
from gac_jax.scaling.flops import flops
from gac_jax.scaling.hlo import KINDS, Collective, collectives, sent
from gac_jax.scaling.programs import Program, build


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Of one program; NaN where nothing is known.

    Attributes:
      program: its name.
      parameters: that it trains, or that the sampler uses.
      audio: seconds that one call learns from, or makes.
      memory: bytes on one chip, by what they are for.
      fits: whether the chip has them; None if that cannot be told.
      problem: what the compiler said if it gave up.
      flops: operations of one call on all chips together.
      recomputed: those among them that save memory only.
      collectives: kind -> {"count", "bytes"}, of one chip in one call; bytes are those it sends.
        Those between slices have kinds of their own, "all-reduce between slices".
      complaints: arrays that every chip held whole against the partitioner's will.
      seconds: that one call takes at least: {"compute", "memory", "network"}, and "slices" for
        what goes between several.
    """

    program: str
    parameters: int
    audio: float
    memory: dict[str, int]
    fits: bool | None
    problem: str
    flops: float
    recomputed: float
    collectives: dict[str, dict[str, int]]
    complaints: int
    seconds: dict[str, float]

    @property
    def step(self) -> float:
        """Seconds of one call, if computation, memory and network keep out of each other's way."""
        return max(self.seconds.values(), default=math.nan)

    def utilisation(self, topology: Topology) -> float:
        """Share of the chips' peak that goes into what the model needs (MFU), at most."""
        if topology.chip is None:
            return math.nan
        peak = topology.chips * topology.chip.flops
        return (self.flops - self.recomputed) / (self.step * peak)

    def record(self, topology: Topology) -> dict[str, Any]:
        """As plain JSON; what is not known is None."""
        whole = {
            **dataclasses.asdict(self),
            "step": self.step,
            "utilisation": self.utilisation(topology),
        }
        return jax.tree.map(lambda x: None if isinstance(x, float) and math.isnan(x) else x, whole)


def forecast(name: str, config: ConfigDict, mesh: Mesh, topology: Topology) -> Forecast:
    """Compiles one of `programs.PROGRAMS` for the devices of `mesh` and reads the result.

    Raises:
      UserError: a language model that `config` names cannot be read.
      TypeError: an unknown key in the configuration of a part.
      ValueError: an impossible value, or a batch that the mesh cannot share.
    """
    # Outside the mesh's context, in which constants would be computed on devices that do not exist.
    program, plain = build(name, config, mesh), build(name, _without_remat(config), mesh)
    with jax.set_mesh(mesh), jax.default_matmul_precision(config.matmul_precision):
        traced = program.function.trace(*program.arguments)
        needed = flops(plain.function.trace(*plain.arguments).jaxpr)
        try:
            compiled, problem = compile_and_listen(traced.lower()), ""
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            compiled, problem = None, str(error).splitlines()[0]
    total = flops(traced.jaxpr)
    return _read(program, compiled, problem, topology, (total, total - needed))


def _read(
    program: Program,
    compiled: Compiled | None,
    problem: str,
    topology: Topology,
    operations: tuple[int, int],
) -> Forecast:
    memory = _memory(compiled) if compiled else {}
    found = collectives(compiled.program.as_text()) if compiled else []
    return Forecast(
        program=program.name,
        parameters=program.parameters,
        audio=program.audio,
        memory=memory,
        fits=False if problem else _fits(memory, topology),
        problem=problem,
        flops=operations[0],
        recomputed=operations[1],
        collectives=_by_kind(found),
        complaints=len(compiled.complaints) if compiled else 0,
        seconds=seconds(operations[0], memory, found, topology) if compiled else {},
    )


def seconds(
    operations: float, memory: dict[str, int], found: Sequence[Collective], topology: Topology
) -> dict[str, float]:
    """Least time of one call on each of the things that may hold it up.

    Args:
      operations: of all chips together; they are taken to be spread evenly, in bfloat16.
      memory: as in `Forecast`. Arguments are read once, results written once, and what is computed
        in between is written and read once; a real program reads its weights more often.
      found: collectives of one chip, at the full rate of all its links or, between slices, of its
        share of its host's network.
      topology: the slice.
    """
    chip = topology.chip
    if chip is None:
        return {}
    moved = memory["arguments"] + memory["results"] + 2 * memory["temporaries"]
    within, between = ([c for c in found if c.between is side] for side in (False, True))
    least = {
        "compute": operations / topology.chips / chip.flops,
        "memory": moved / chip.bandwidth,
        "network": sent(within) / topology.link,
    }
    if between and chip.network:
        least["slices"] = sent(between) / chip.network
    return least


def _memory(compiled: Compiled) -> dict[str, int]:
    """Bytes of one chip. Results that take the place of arguments are in `shared`."""
    sizes = compiled.program.memory_analysis()
    parts = {
        "arguments": sizes.argument_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "results": sizes.output_size_in_bytes,
        "shared": sizes.alias_size_in_bytes,
    }
    total = parts["arguments"] + parts["temporaries"] + parts["results"] - parts["shared"]
    return {**parts, "total": total}


def _fits(memory: dict[str, int], topology: Topology) -> bool | None:
    """Certain where the chip's own compiler placed the arrays, or arguments alone are too large."""
    if topology.chip is None:
        return None
    if memory["arguments"] > topology.chip.memory:
        return False
    return True if topology.compiled_by == "tpu" else None


def _by_kind(found: Sequence[Collective]) -> dict[str, dict[str, int]]:
    kinds = {
        kind + suffix: [c for c in found if (c.kind, c.between) == (kind, bool(suffix))]
        for suffix in ("", " between slices")
        for kind in KINDS
    }
    return {
        kind: {"count": sum(c.times for c in own), "bytes": sent(own)}
        for kind, own in kinds.items()
        if own
    }


def _without_remat(config: ConfigDict) -> ConfigDict:
    config = config.copy_and_resolve_references()
    for part in ("encoder", "decoder", "language_model"):
        config[part].remat = False
    return config
