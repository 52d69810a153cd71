"""Costs of a compiled program, from the text of its optimized HLO.

XLA's own cost analysis counts the body of a loop once. Here it is multiplied by the trip count, as scans over layers
and microbatches require.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pbrl_jax.plan.hlo_text import NAME, Computation, Instruction, parse_module

COLLECTIVES = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
"""Collective -> bytes that a chip sends for each byte of the full array, in a ring of n chips."""
FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all partition-id replica-id "
    "copy-done all-gather-done all-reduce-done collective-permute-done async-done async-update iota".split()
)
"""Instructions without memory traffic of their own."""
COPIES = ("copy", "copy-start")
"""Instructions that copy between host and device memory."""


class Cost(NamedTuple):
    """Per chip: flops, memory traffic, bytes sent to other chips by kind of collective, loops of unknown trip count,
    and bytes copied from and to host memory."""

    flops: float = 0.0
    bytes: float = 0.0
    collectives: Mapping[str, float] = {}
    unknown_loops: int = 0
    host_bytes: float = 0.0

    def plus(self, other: "Cost", times: float = 1.0) -> "Cost":
        collectives = dict(self.collectives)
        for name, size in other.collectives.items():
            collectives[name] = collectives.get(name, 0.0) + times * size
        return Cost(
            self.flops + times * other.flops, self.bytes + times * other.bytes, collectives,
            self.unknown_loops + other.unknown_loops, self.host_bytes + times * other.host_bytes,
        )  # fmt: skip

    @property
    def collective_bytes(self) -> float:
        return sum(self.collectives.values())


def _numbers(attributes: str, name: str) -> list[int]:
    found = re.search(name + r"=\{([\d,]*)\}", attributes)
    return [int(number) for number in found[1].split(",") if number] if found else []


def dot_flops(instruction: Instruction, known: Computation) -> float:
    """Flops of a dot: two for each product."""
    left = known[instruction.operands[0]].shapes[0].sizes
    contracted = math.prod(left[axis] for axis in _numbers(instruction.attributes, "lhs_contracting_dims"))
    return 2.0 * math.prod(instruction.shapes[0].sizes) * contracted


@functools.cache
def valid_positions(output: int, kernel: int, data: int, stride: int, low: int, hole: int, spread: int) -> int:
    """Number of (output, kernel) positions of one spatial axis that read data, not padding or dilation."""
    places_k = np.arange(kernel) * spread - low
    extent = (data - 1) * hole + 1
    total, rows = 0, max(1, 2**22 // kernel)
    for start in range(0, output, rows):
        place = np.arange(start, min(start + rows, output))[:, None] * stride + places_k
        total += int(((place >= 0) & (place < extent) & (place % hole == 0)).sum())
    return total


def _window_field(window: dict[str, str], name: str, axis: int, default: int) -> int:
    return int(window[name].split("x")[axis].split("_")[0]) if name in window else default


def convolution_flops(instruction: Instruction, known: Computation) -> float:
    """Flops of a convolution; the TPU compiler writes every matrix product as one."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    left, right = (known[name].shapes[0].sizes for name in instruction.operands[:2])
    out = instruction.shapes[0].sizes
    lhs, rhs, result = labels[1], labels[2], labels[3]
    found = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    window = dict(part.split("=") for part in found[1].split()) if found else {}
    positions = 1
    for axis in range(len(lhs) - 2):
        number = str(axis)
        defaults = {"stride": 1, "pad": 0, "lhs_dilate": 1, "rhs_dilate": 1}
        fields = (_window_field(window, name, axis, default) for name, default in defaults.items())
        positions *= valid_positions(
            out[result.index(number)], right[rhs.index(number)], left[lhs.index(number)], *fields
        )
    groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    shared = out[result.index("b")] * out[result.index("f")] * right[rhs.index("i")]
    return 2.0 * shared * positions / (int(groups[1]) if groups and int(groups[1]) > 1 else 1)


def group_size(attributes: str) -> int:
    """Number of chips in a collective."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(found[1].split(","))
    return 2


class Walker:
    """Costs of the computations of a module, each computed once."""

    def __init__(self, text: str, unknown_trips: float = 1.0):
        """`unknown_trips`: trip count of loops that end by the data (over sampled tokens); one inside another runs
        once."""
        self.computations, self.entry = parse_module(text)
        self.unknown_trips = unknown_trips
        self.inside_unknown = False
        self.done: dict[tuple[str, bool], Cost] = {}

    def total(self) -> Cost:
        return self.cost(self.entry, False)

    def cost(self, name: str, fused: bool) -> Cost:
        """The cost of one computation; inside a fusion only flops count, since nothing else is in memory."""
        key = (name, fused)
        if key not in self.done:
            total = Cost()
            for instruction in self.computations.get(name, {}).values():
                total = total.plus(self.instruction_cost(instruction, self.computations[name], fused))
            self.done[key] = total
        return self.done[key]

    def instruction_cost(self, instruction: Instruction, known: Computation, fused: bool) -> Cost:
        opcode = instruction.opcode
        called = instruction.called
        if opcode == "while":
            return self.loop_cost(instruction, known)
        if opcode == "conditional":
            return self.branch_cost(instruction)
        if opcode == "dot":
            cost = Cost(dot_flops(instruction, known))
        elif opcode == "convolution":
            cost = Cost(convolution_flops(instruction, known))
        elif opcode == "fusion":
            cost = self.cost(called[0], True)
            return cost if fused else cost.plus(Cost(0.0, self.fusion_bytes(instruction, known, called[0])))
        elif opcode in ("call", "async-start") and called:
            return self.cost(called[0], fused)
        elif opcode in COPIES and is_host_copy(instruction, known):
            size = known[instruction.operands[0]].bytes
            return Cost(0.0, size, host_bytes=size)
        else:
            cost = Cost(0.0, 0.0, self.sent_bytes(instruction, known))
        return cost if fused or opcode in FREE else cost.plus(Cost(0.0, moved_bytes(instruction, known)))

    def loop_cost(self, instruction: Instruction, known: Computation) -> Cost:
        body = re.search(r"body=%?([\w.\-]+)", instruction.attributes)[1]
        condition = re.search(r"condition=%?([\w.\-]+)", instruction.attributes)[1]
        trips = self.trip_count(instruction, condition, known)
        outermost = trips is None and not self.inside_unknown
        self.inside_unknown |= outermost
        cost = self.cost(body, False).plus(self.cost(condition, False))
        self.inside_unknown &= not outermost
        times = trips if trips is not None else self.unknown_trips if outermost else 1
        return Cost(0.0, 0.0, {}, int(trips is None)).plus(cost, times)

    def trip_count(self, instruction: Instruction, condition: str, known: Computation) -> int | None:
        """The trip count of a loop, as annotated or from its condition; None if it depends on data."""
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.attributes):
            return int(found[1])
        lines = list(self.computations[condition].values())
        if any(line.opcode in ("and", "fusion", "call") and not line.root for line in lines):
            return None
        root = next(line for line in lines if line.root)
        if root.opcode == "fusion":
            inside = self.computations[re.search(r"calls=%?([\w.\-]+)", root.attributes)[1]]
            root = next(line for line in inside.values() if line.root)
        limits = [line for line in lines if line.opcode == "constant" and not line.shapes[0].sizes]
        if root.opcode != "compare" or "direction=LT" not in root.attributes or len(limits) != 1:
            return None
        counters = [line for line in lines if line.opcode == "get-tuple-element"]
        start, step = 0, 1
        if len(counters) == 1:
            index = int(re.search(r"index=(\d+)", counters[0].attributes)[1])
            start = self.constant_of(self.element(known, instruction.operands[0], index), known, 0)
            step = self.step_of(re.search(r"body=%?([\w.\-]+)", instruction.attributes)[1], index)
        return max(0, -(-(int(limits[0].inner) - start) // step))

    def element(self, known: Computation, name: str, index: int) -> Instruction | None:
        """The instruction that makes an element of a tuple, if the tuple is made here."""
        made = known.get(name)
        if made is None or made.opcode != "tuple":
            return None
        found = known.get(made.operands[index])
        while found is not None and found.opcode in ("copy", "bitcast") and found.operands:
            found = known.get(found.operands[0])
        return found

    def constant_of(self, found: Instruction | None, known: Computation, default: int) -> int:
        return int(found.inner) if found is not None and found.opcode == "constant" else default

    def step_of(self, body: str, index: int) -> int:
        """The increment of a loop's counter; windowed products of the TPU compiler add two."""
        known = self.computations[body]
        root = next((line for line in known.values() if line.root), None)
        found = None if root is None else self.element(known, root.name, index)
        if found is not None and found.opcode == "fusion":
            known = self.computations[re.search(r"calls=%?([\w.\-]+)", found.attributes)[1]]
            found = next(line for line in known.values() if line.root)
        if found is None or found.opcode != "add":
            return 1
        added = (known.get(name) for name in found.operands)
        return next((int(line.inner) for line in added if line is not None and line.opcode == "constant"), 1)

    def branch_cost(self, instruction: Instruction) -> Cost:
        names = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
        found = NAME.findall(names[1]) if names else re.findall(
            r"(?:true|false)_computation=%?([\w.\-]+)", instruction.attributes
        )  # fmt: skip
        return max(
            (self.cost(name, False) for name in found), key=lambda cost: (cost.flops, cost.bytes), default=Cost()
        )

    def sent_bytes(self, instruction: Instruction, known: Computation) -> dict[str, float]:
        opcode = instruction.opcode.removesuffix("-start")
        if opcode not in COLLECTIVES:
            return {}
        chips = group_size(instruction.attributes)
        given = sum(known[name].bytes for name in instruction.operands if name in known)
        full = given * chips if opcode == "all-gather" else given
        return {opcode: full * COLLECTIVES[opcode](chips)}

    def fusion_bytes(self, instruction: Instruction, known: Computation, called: str) -> float:
        """Bytes of the operands and results of a fusion; of sliced operands and of results written into an operand, the
        slices."""
        total = sum(
            read_bytes(self.computations, called, number, known[operand])
            for number, operand in enumerate(instruction.operands)
            if operand in known
        )
        inside = self.computations[called]
        root = next((line for line in inside.values() if line.root), None)
        return total + (instruction.bytes if root is None else written_bytes(inside, root))


def read_bytes(computations: Mapping[str, Computation], called: str, number: int, given: Instruction) -> float:
    """Bytes that a fusion reads of its operand `number`: all, or its slices."""
    inside = computations[called]
    name = next((line.name for line in inside.values() if line.opcode == "parameter" and int(line.inner) == number), "")
    found = sliced_bytes(computations, inside, name)
    return given.bytes if found is None else found


def sliced_bytes(computations: Mapping[str, Computation], inside: Computation, name: str) -> float | None:
    """Bytes of the slices of an array that is only read in slices; None otherwise."""
    total = 0.0
    for line in (line for line in inside.values() if name in line.operands):
        if is_sliced(line, name):
            total += line.bytes if line.opcode != "dynamic-update-slice" else 0.0
            continue
        parts = [None]
        if line.opcode == "bitcast" and not line.root:
            parts = [sliced_bytes(computations, inside, line.name)]
        elif line.opcode == "fusion":
            below = computations[line.called[0]]
            places = {number for number, operand in enumerate(line.operands) if operand == name}
            names = [one.name for one in below.values() if one.opcode == "parameter" and int(one.inner) in places]
            parts = [sliced_bytes(computations, below, one) for one in names]
        if None in parts:
            return None
        total += sum(parts)
    return total


def written_bytes(inside: Computation, line: Instruction) -> float:
    """Bytes that a fusion writes for a result; of one that is written into an operand, the slice."""
    if line.opcode == "tuple":
        return sum(written_bytes(inside, inside[name]) for name in line.operands if name in inside)
    if line.opcode == "bitcast" and line.operands[0] in inside:
        return written_bytes(inside, inside[line.operands[0]])
    return inside[line.operands[1]].bytes if line.opcode == "dynamic-update-slice" else line.bytes


def is_host_copy(instruction: Instruction, known: Computation) -> bool:
    """Whether a copy is between host and device memory."""
    source = known.get(instruction.operands[0])
    return source is not None and (instruction.hosted or source.hosted)


def is_sliced(user: Instruction, name: str) -> bool:
    """Whether `user` reads or writes only a slice of the array."""
    slices = ("slice", "dynamic-slice", "gather", "dynamic-update-slice")
    return user.opcode in slices and user.operands[0] == name and user.operands.count(name) == 1


def moved_bytes(instruction: Instruction, known: Computation) -> float:
    """Memory traffic of an instruction outside of fusions."""
    if instruction.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * instruction.bytes
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * sum(known[name].bytes for name in instruction.operands[1:] if name in known)
    return instruction.bytes + sum(known[name].bytes for name in instruction.operands if name in known)


def program_cost(text: str, unknown_trips: float = 1.0) -> Cost:
    """Cost of a compiled program (`compiled.as_text()`) on one chip."""
    return Walker(text, unknown_trips).total()
