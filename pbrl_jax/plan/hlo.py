"""Costs of a compiled program, from the text of its optimized HLO.

XLA's own cost analysis counts the body of a loop once. Here every loop counts as often as it runs, so that a scan over
layers or microbatches costs what it costs.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pbrl_jax.models.fused_attention import PAIRS_SCOPE
from pbrl_jax.plan.hlo_text import (
    ITEM_BYTES,
    NAME,
    Computation,
    Instruction,
    group_size,
    network_share,
    parse_module,
)

#: Collective -> bytes that leave a chip for each byte of the whole array, in a ring of n chips.
COLLECTIVES = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
#: Instructions that move no data of their own.
FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all partition-id replica-id "
    "async-update iota".split()
)
#: Instructions that copy between the host's memory and the device's.
COPIES = ("copy", "copy-start")


#: A Splash call: its pairs of a row and head (see models.fused_attention.PAIRS_SCOPE), and which kernel it is.
PAIRS = re.compile(PAIRS_SCOPE.format(r"(\d+)") + r".*splash_\w+?_(fwd|dq|dkv)_")
#: Numbers of the arguments that a kernel writes its results into.
ALIASED = re.compile(r"\{\d*\}: \((\d+), \{\}\)")
#: Matrix products of a pair in each kernel of Splash.
PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
#: Names of the blocks for whose every one it reads the other side again.
BLOCKS = {"fwd": "block_q", "dq": "block_q_dq", "dkv": "block_kv_dkv"}


class Cost(NamedTuple):
    """Per chip: FLOPs, memory traffic, bytes sent to other chips by kind of collective, number of loops of unknown
    length, bytes copied from and to host memory, and those of the bytes sent that pass the network between slices or
    boxes."""

    flops: float = 0.0
    bytes: float = 0.0
    collectives: Mapping[str, float] = {}
    unknown_loops: int = 0
    host_bytes: float = 0.0
    network_bytes: float = 0.0

    def plus(self, other: "Cost", times: float = 1.0) -> "Cost":
        collectives = dict(self.collectives)
        for name, size in other.collectives.items():
            collectives[name] = collectives.get(name, 0.0) + times * size
        return Cost(
            self.flops + times * other.flops, self.bytes + times * other.bytes, collectives,
            self.unknown_loops + other.unknown_loops, self.host_bytes + times * other.host_bytes,
            self.network_bytes + times * other.network_bytes,
        )  # fmt: skip

    @property
    def collective_bytes(self) -> float:
        return sum(self.collectives.values())

    @property
    def link_bytes(self) -> float:
        """Bytes sent that stay within the slice or box."""
        return self.collective_bytes - self.network_bytes


def attribute(instruction: Instruction, pattern: str) -> str:
    """What the first group of a pattern finds in the attributes of an instruction, which must be there."""
    found = re.search(pattern, instruction.attributes)
    if found is None:
        raise ValueError(f"The {instruction.opcode} {instruction.name} has no {pattern} in {instruction.attributes!r}.")
    return found[1]


def _numbers(attributes: str, name: str) -> list[int]:
    found = re.search(name + r"=\{([\d,]*)\}", attributes)
    return [int(number) for number in found[1].split(",") if number] if found else []


def dot_flops(instruction: Instruction, computation: Computation) -> float:
    """FLOPs of a dot: two per product."""
    left = computation[instruction.operands[0]].shapes[0].sizes
    contracted = math.prod(left[axis] for axis in _numbers(instruction.attributes, "lhs_contracting_dims"))
    return 2.0 * math.prod(instruction.shapes[0].sizes) * contracted


def kernel_cost(instruction: Instruction, computation: Computation, pairs: int, kind: str) -> Cost:
    """Products of a Splash kernel, and what it reads again: for each block of queries the keys and values that they
    see, and the reverse for the gradient of those."""
    arrays = [computation[name] for name in instruction.operands if name in computation]
    query, key = [line for line in arrays if line.shapes[0].kind in ("bf16", "f16", "f32")][:2]
    *rows, _, channels = query.shapes[0].sizes
    block = int(attribute(instruction, BLOCKS[kind] + r'\\": (\d+)'))
    read = query if kind == "dkv" else key
    again = 0.0 if read.shapes[0].on_chip else 2.0 * ITEM_BYTES[read.shapes[0].kind] * channels * pairs / block
    return Cost().plus(Cost(2.0 * PRODUCTS[kind] * channels * pairs, again), math.prod(rows))


@functools.cache
def valid_positions(output: int, kernel: int, data: int, stride: int, low: int, hole: int, spread: int) -> int:
    """Pairs of (output, kernel) positions of one spatial axis that read data, not padding or dilation holes."""
    places_k = np.arange(kernel) * spread - low
    extent = (data - 1) * hole + 1
    total, rows = 0, max(1, 2**22 // kernel)
    for start in range(0, output, rows):
        place = np.arange(start, min(start + rows, output))[:, None] * stride + places_k
        total += int(((place >= 0) & (place < extent) & (place % hole == 0)).sum())
    return total


def _window_field(window: dict[str, str], name: str, axis: int, default: int) -> int:
    return int(window[name].split("x")[axis].split("_")[0]) if name in window else default


def convolution_flops(instruction: Instruction, computation: Computation) -> float:
    """FLOPs of a convolution, as which the TPU compiler writes every matrix product: two per product."""
    lhs, rhs, result = re.split("_|->", attribute(instruction, r"dim_labels=(\w+_\w+->\w+)"))
    left, right = (computation[name].shapes[0].sizes for name in instruction.operands[:2])
    out = instruction.shapes[0].sizes
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


class Walker:
    """Costs of the computations of a module, each computed once."""

    def __init__(self, text: str, unknown_trips: float = 1.0, inner_trips: float = 1.0, box: int = 0):
        """`unknown_trips` are the iterations of a loop whose length depends on data (that over sampled tokens),
        `inner_trips` those of such a loop within another (that over blocks of a cache), `box` the chips that reach each
        other without the network (0: all)."""
        self.computations, self.entry = parse_module(text)
        self.unknown_trips, self.inner_trips, self.box = unknown_trips, inner_trips, box
        self.inside_unknown = False
        self.done: dict[tuple[str, bool], Cost] = {}

    def total(self) -> Cost:
        return self.cost(self.entry, False)

    def cost(self, name: str, fused: bool) -> Cost:
        """Cost of one computation; inside a fusion only FLOPs count, since no intermediate array is in memory."""
        key = (name, fused)
        if key not in self.done:
            total = Cost()
            for instruction in self.computations.get(name, {}).values():
                total = total.plus(self.instruction_cost(instruction, self.computations[name], fused))
            self.done[key] = total
        return self.done[key]

    def instruction_cost(self, instruction: Instruction, computation: Computation, fused: bool) -> Cost:
        opcode = instruction.opcode
        called = instruction.called
        if opcode == "while":
            return self.loop_cost(instruction, computation)
        if opcode == "conditional":
            return self.branch_cost(instruction)
        if opcode == "dot":
            cost = Cost(dot_flops(instruction, computation))
        elif opcode == "convolution":
            cost = Cost(convolution_flops(instruction, computation))
        elif opcode == "custom-call" and (kernel := PAIRS.search(instruction.attributes)):
            cost = kernel_cost(instruction, computation, int(kernel[1]), kernel[2])
        elif opcode == "fusion":
            cost = self.cost(called[0], True)
            return cost if fused else cost.plus(Cost(0.0, self.fusion_bytes(instruction, computation, called[0])))
        elif opcode in ("call", "async-start") and called:
            return self.cost(called[0], fused)
        elif opcode in COPIES and is_host_copy(instruction, computation):
            size = computation[instruction.operands[0]].bytes
            return Cost(0.0, size, host_bytes=size)
        else:
            sent = self.sent_bytes(instruction, computation)
            passed = network_share(instruction.attributes, self.box) if sent and self.box else 0.0
            cost = Cost(0.0, 0.0, sent, network_bytes=passed * sum(sent.values()))
        free = fused or opcode in FREE or opcode.endswith("-done")
        return cost if free else cost.plus(Cost(0.0, moved_bytes(instruction, computation)))

    def loop_cost(self, instruction: Instruction, computation: Computation) -> Cost:
        body, condition = (attribute(instruction, name + r"=%?([\w.\-]+)") for name in ("body", "condition"))
        trips = self.trip_count(instruction, condition, computation)
        outermost = trips is None and not self.inside_unknown
        self.inside_unknown |= outermost
        cost = self.cost(body, False).plus(self.cost(condition, False))
        self.inside_unknown &= not outermost
        times = trips if trips is not None else self.unknown_trips if outermost else self.inner_trips
        return Cost(0.0, 0.0, {}, int(trips is None)).plus(cost, times)

    def trip_count(self, instruction: Instruction, condition: str, computation: Computation) -> int | None:
        """Iterations of a loop: the compiler's note, or by its condition; None where they depend on data."""
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.attributes):
            return int(found[1])
        lines = list(self.computations[condition].values())
        if any(line.opcode in ("and", "fusion", "call") and not line.root for line in lines):
            return None
        root = next(line for line in lines if line.root)
        if root.opcode == "fusion":
            inside = self.computations[root.called[0]]
            root = next(line for line in inside.values() if line.root)
        limits = [line for line in lines if line.opcode == "constant" and not line.shapes[0].sizes]
        if root.opcode != "compare" or "direction=LT" not in root.attributes or len(limits) != 1:
            return None
        counters = [line for line in lines if line.opcode == "get-tuple-element"]
        start, step = 0, 1
        if len(counters) == 1:
            index = int(attribute(counters[0], r"index=(\d+)"))
            start = self.constant_of(self.element(computation, instruction.operands[0], index), computation, 0)
            step = self.step_of(attribute(instruction, r"body=%?([\w.\-]+)"), index)
        return max(0, -(-(int(limits[0].inner) - start) // step))

    def element(self, computation: Computation, name: str, index: int) -> Instruction | None:
        """The instruction that computes an element of a tuple, or None where the tuple is not built here."""
        made = computation.get(name)
        if made is None or made.opcode != "tuple":
            return None
        found = computation.get(made.operands[index])
        while found is not None and found.opcode in ("copy", "bitcast") and found.operands:
            found = computation.get(found.operands[0])
        return found

    def constant_of(self, found: Instruction | None, computation: Computation, default: int) -> int:
        return int(found.inner) if found is not None and found.opcode == "constant" else default

    def step_of(self, body: str, index: int) -> int:
        """Increment of a loop's counter; the windowed products of the TPU compiler add two."""
        computation = self.computations[body]
        root = next((line for line in computation.values() if line.root), None)
        found = None if root is None else self.element(computation, root.name, index)
        if found is not None and found.opcode == "fusion":
            computation = self.computations[found.called[0]]
            found = next(line for line in computation.values() if line.root)
        if found is None or found.opcode != "add":
            return 1
        added = (computation.get(name) for name in found.operands)
        return next((int(line.inner) for line in added if line is not None and line.opcode == "constant"), 1)

    def branch_cost(self, instruction: Instruction) -> Cost:
        names = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
        found = NAME.findall(names[1]) if names else re.findall(
            r"(?:true|false)_computation=%?([\w.\-]+)", instruction.attributes
        )  # fmt: skip
        return max(
            (self.cost(name, False) for name in found), key=lambda cost: (cost.flops, cost.bytes), default=Cost()
        )

    def sent_bytes(self, instruction: Instruction, computation: Computation) -> dict[str, float]:
        opcode = instruction.opcode.removesuffix("-start")
        if opcode not in COLLECTIVES:
            return {}
        if opcode == "all-reduce" and is_scattered(instruction, computation):
            opcode = "reduce-scatter"
        chips = group_size(instruction.attributes)
        given = sum(computation[name].bytes for name in instruction.operands if name in computation)
        full = given * chips if opcode == "all-gather" else given
        return {opcode: full * COLLECTIVES[opcode](chips)}

    def fusion_bytes(self, instruction: Instruction, computation: Computation, called: str) -> float:
        """Bytes of operands and results of a fusion; of an operand that is only sliced, or a result that is written
        into an operand, those of the slice."""
        total = sum(
            operand_bytes(self.computations, called, number, computation[operand])
            for number, operand in enumerate(instruction.operands)
            if operand in computation
        )
        inside = self.computations[called]
        root = next((line for line in inside.values() if line.root), None)
        written = instruction.memory_bytes
        return total + (written if root is None else min(written, result_bytes(inside, root)))


def operand_bytes(computations: Mapping[str, Computation], called: str, number: int, given: Instruction) -> float:
    """Bytes that a fusion reads of its operand `number`: all, or those of its slices."""
    inside = computations[called]
    name = next((line.name for line in inside.values() if line.opcode == "parameter" and int(line.inner) == number), "")
    found = sliced_bytes(computations, inside, name)
    return given.memory_bytes if found is None else min(found, given.memory_bytes)


def sliced_bytes(computations: Mapping[str, Computation], inside: Computation, name: str) -> float | None:
    """Bytes of the slices of an array that is only sliced; None for one that is read in full."""
    total = 0.0
    for line in (line for line in inside.values() if name in line.operands):
        if is_sliced(line, name):
            total += line.bytes if line.opcode != "dynamic-update-slice" else 0.0
            continue
        parts: list[float | None] = [None]
        if line.opcode == "bitcast" and not line.root:
            parts = [sliced_bytes(computations, inside, line.name)]
        elif line.opcode == "fusion":
            below = computations[line.called[0]]
            places = {number for number, operand in enumerate(line.operands) if operand == name}
            names = [one.name for one in below.values() if one.opcode == "parameter" and int(one.inner) in places]
            parts = [sliced_bytes(computations, below, one) for one in names]
        for part in parts:
            if part is None:
                return None
            total += part
    return total


def result_bytes(inside: Computation, line: Instruction) -> float:
    """Bytes that a fusion writes for a result: for one that updates an operand in place, those of the slice."""
    if line.opcode == "tuple":
        return sum(result_bytes(inside, inside[name]) for name in line.operands if name in inside)
    if line.opcode == "bitcast" and line.operands[0] in inside:
        return result_bytes(inside, inside[line.operands[0]])
    return inside[line.operands[1]].bytes if line.opcode == "dynamic-update-slice" else line.bytes


def is_host_copy(instruction: Instruction, computation: Computation) -> bool:
    """Whether a copy is between host memory and device memory."""
    source = computation.get(instruction.operands[0])
    return source is not None and (instruction.hosted or source.hosted)


def is_scattered(instruction: Instruction, computation: Computation) -> bool:
    """Whether of an all-reduce only a slice is used: how the TPU compiler writes a reduce-scatter."""
    users = [line for line in computation.values() if instruction.name in line.operands]
    while len(users) == 1 and users[0].opcode in ("bitcast", "reshape"):
        users = [line for line in computation.values() if users[0].name in line.operands]
    return bool(users) and all(line.opcode == "dynamic-slice" for line in users)


def is_sliced(user: Instruction, name: str) -> bool:
    """Whether `user` reads or writes only a slice of the array."""
    slices = ("slice", "dynamic-slice", "gather", "dynamic-update-slice")
    return user.opcode in slices and user.operands[0] == name and user.operands.count(name) == 1


def moved_bytes(instruction: Instruction, computation: Computation) -> float:
    """Memory traffic of an instruction outside a fusion. One that ends elsewhere (`...-start`) counts where it begins,
    and names its operands among its results, before the true ones, or after the true one of a copy. What a kernel is
    given and writes in place is not counted."""
    read = [computation[name].memory_bytes for name in instruction.operands if name in computation]
    opcode, shapes = instruction.opcode.removesuffix("-start"), instruction.shapes
    if opcode == "custom-call" and (places := ALIASED.findall(instruction.attributes)):
        # A kernel that writes into its arguments names no part that it writes; that is small.
        inside = sum(computation[instruction.operands[int(place)]].memory_bytes for place in places)
        return sum(read) + sum(shape.bytes for shape in shapes if not shape.on_chip) - 2 * inside
    if opcode != instruction.opcode and len(shapes) > 1:
        count = len(instruction.operands) if opcode in COLLECTIVES else 1
        shapes = shapes[:1] if opcode == "copy" else shapes[count : 2 * count]
    made = sum(shape.bytes for shape in shapes if not shape.on_chip)
    if opcode in ("dynamic-slice", "gather", "slice"):
        return sum(shape.bytes for shape in shapes) + made
    if opcode in ("dynamic-update-slice", "scatter"):
        return 2 * sum(read[1:])
    return made + sum(read)


def program_cost(text: str, unknown_trips: float = 1.0, inner_trips: float = 1.0, box: int = 0) -> Cost:
    """Cost of a compiled program (`compiled.as_text()`) on one chip, every loop counted as often as it runs."""
    return Walker(text, unknown_trips, inner_trips, box).total()
