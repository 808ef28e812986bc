"""Reads compiled programs: which collectives a chip takes part in, how often and how large.

The text of a compiled program names every collective once, but those inside a scan over layers run
once a layer; `collectives` multiplies by the trip counts that XLA writes beside each loop.

In a program for several TPU slices, libtpu has parted what goes between them from what stays within
one, and leaves it to the hosts ("megascale"): each chip hands its share over in a send.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*)$")
_OPERATION = re.compile(r"(?<=[\s)}\]])([a-z][a-z0-9\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d+[a-z0-9]*|pred)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)")
_LOOP = re.compile(r"\bcondition=%?([\w.\-]+), body=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"\b(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))"
)
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BETWEEN = re.compile(r'_xla_megascale_target="\{([\d,:]+)\}.*_xla_megascale_transfer_type="(\w+)"')
_LIMIT = re.compile(r"^s\d+\[\]\S* constant\((\d+)\)")
_BITS = re.compile(r"\d+")


class Array(NamedTuple):
    """An array of a compiled program, as one chip holds it.

    Attributes:
      dtype: XLA's name of its type, for example 'bf16'.
      shape: sizes.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size in memory, layout padding left out."""
        bits = 8 if self.dtype == "pred" else int(_BITS.findall(self.dtype)[0])
        return math.ceil(math.prod(self.shape) * bits / 8)


class Collective(NamedTuple):
    """A collective of one kind on one set of arrays.

    Attributes:
      kind: one of `KINDS`.
      results: what one chip holds afterwards.
      group: chips that take part together.
      times: executions in one call of the program.
      between: whether it is between slices; `group` then counts slices.
    """

    kind: str
    results: tuple[Array, ...]
    group: int
    times: int
    between: bool = False

    @property
    def sent(self) -> int:
        """Bytes that one chip sends in one call of the program, by ring algorithms.

        To gather n parts, each chip passes on all but one of them; to sum, it passes on n - 1
        partial sums, and a sum that all chips want is scattered, then gathered.
        """
        size, others = sum(array.bytes for array in self.results), self.group - 1
        once = {
            "all-gather": size * others // self.group,
            "all-reduce": 2 * size * others // self.group,
            "reduce-scatter": size * others,
            "all-to-all": size * others // self.group,
            "collective-permute": size,
        }
        return once[self.kind] * self.times


class _Instruction(NamedTuple):
    operation: str
    results: tuple[Array, ...]
    text: str


def collectives(text: str) -> list[Collective]:
    """Every collective that one call of a compiled program runs, in the order of the text.

    Of the branches of a conditional, those of the branch that sends most count. A loop whose trip
    count cannot be told counts once.

    Args:
      text: `jax.stages.Compiled.as_text()`.

    Raises:
      ValueError: not the text of a compiled program.
    """
    computations, entry = _parse(text)
    partitions = re.search(r"num_partitions=(\d+)", text)
    chips = int(partitions[1]) if partitions else 1

    def run(name: str, seen: set[str]) -> Iterator[Collective]:
        """One execution; `seen` are channels: the parts of an asynchronous collective share one."""
        for instruction in computations[name]:
            operation, results, rest = instruction
            if operation == "send" and (told := _BETWEEN.search(rest)):
                yield _between(results, told[1], told[2])
            elif operation.removesuffix("-start") in KINDS:
                channel = _CHANNEL.search(rest)
                if not channel or channel[1] not in seen:
                    seen |= {channel[1]} if channel else set()
                    yield _collective(instruction, chips)
            elif loop := _LOOP.search(rest):
                times = _trips(rest, computations[loop[1]])
                yield from (c._replace(times=c.times * times) for c in run(loop[2], set()))
            elif branches := _BRANCHES.findall(rest):
                names = [n.strip(" %") for pair in branches for n in ",".join(pair).split(",") if n]
                yield from max((list(run(name, set())) for name in names), key=sent)
            elif not operation.endswith(("-update", "-done")):  # the start has counted already
                for called in _CALLED.findall(rest):
                    inner = run(called, seen)
                    if called.startswith("all-reduce-scatter"):  # as TPUs write a reduce-scatter
                        inner = (Collective("reduce-scatter", results, c.group, 1) for c in inner)
                    yield from inner

    return list(run(entry, set()))


def sent(found: Iterable[Collective]) -> int:
    """Bytes that one chip sends in all of them together, within and between slices."""
    return sum(collective.sent for collective in found)


def gathers_of(found: Iterable[Collective], shapes: set[tuple[int, ...]]) -> list[Collective]:
    """The all-gathers whose result is an array of one of `shapes`, in any order of its axes."""
    wanted = {_canonical(shape) for shape in shapes}
    return [
        collective
        for collective in found
        if collective.kind == "all-gather"
        and any(_canonical(array.shape) in wanted for array in collective.results)
    ]


def _canonical(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(size for size in shape if size > 1))


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Instructions of every computation, and the name of the one that runs first."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", computations.setdefault("", [])
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif match := _INSTRUCTION.match(line):
            current.append(_instruction(match[1]))
    if not entry:
        raise ValueError("this is not the text of a compiled program: it has no ENTRY")
    return computations, entry


def _instruction(text: str) -> _Instruction:
    """Splits 'f32[8,4]{1,0} all-gather(%x), ...' at the operation."""
    operation = _OPERATION.search(text)
    if operation is None:
        return _Instruction("", (), text)
    arrays = _ARRAY.findall(text[: operation.start()])
    results = (Array(dtype, tuple(map(int, filter(None, s.split(","))))) for dtype, s in arrays)
    return _Instruction(operation[1], tuple(results), text)


def _trips(loop: str, condition: list[_Instruction]) -> int:
    """How often a loop runs: as noted beside it, or the limit that its condition compares with."""
    noted = _TRIPS.search(loop)
    limits = [match[1] for i in condition if (match := _LIMIT.match(i.text))]
    return int(noted[1]) if noted else max(map(int, limits), default=1)


def _collective(instruction: _Instruction, chips: int) -> Collective:
    kind, results = instruction.operation.removesuffix("-start"), instruction.results
    if instruction.operation.endswith("-start") and kind != "all-reduce":
        # An asynchronous start gives (operands, results, ...); of the rest, contexts are scalars.
        arrays = [array for array in results if array.shape]
        results = tuple(arrays[len(arrays) // 2 :])
    return Collective(kind, results, _group(instruction.text, chips), 1)


def _between(sent: tuple[Array, ...], target: str, transfer: str) -> Collective:
    """A collective of slices: `target` is '1,2' or '1:4', `sent` begins with what a chip gives."""
    ranges = ([int(end) for end in part.split(":")] for part in target.split(","))
    slices = sum(ends[-1] - ends[0] + 1 for ends in ranges)
    kind = transfer.lower().replace("_", "-")
    dtype, shape = sent[0]
    if kind == "all-gather":
        shape = (slices, *shape)
    elif kind == "reduce-scatter":
        shape = (math.prod(shape) // slices,)
    elif kind not in KINDS:
        kind = "collective-permute"
    return Collective(kind, (Array(dtype, shape),), slices, 1, between=True)


def _group(text: str, chips: int) -> int:
    """Chips in one group, in any of the three ways in which XLA writes groups."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", text):
        sizes = dict(re.findall(r"('\w+')=(\d+)", mesh[1]))
        # "'axis_1':(2)4" is a part of an axis: 4 chips of it.
        axes = re.findall(r"('\w+')(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return chips
