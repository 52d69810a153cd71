"""A parser of optimized HLO text: instructions by computation."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

ITEM_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4,
    "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
#: How a layout says that an array lies in the host's memory.
HOST_SPACE = "S(5)"
#: How a layout says that an array lies in a chip's own memory (VMEM of a TPU), where it costs no memory traffic.
CHIP_SPACE = "S(1)"
SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
NAME = re.compile(r"%([\w.\-]+)")


class Shape(NamedTuple):
    """One array of a type."""

    kind: str
    sizes: tuple[int, ...]
    on_chip: bool = False

    @property
    def bytes(self) -> float:
        return ITEM_BYTES.get(self.kind, 0) * math.prod(self.sizes)


class Instruction(NamedTuple):
    """One line of HLO."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    #: Text in the parentheses: the value of a constant, the number of a parameter.
    inner: str
    root: bool
    #: Whether one of its arrays is in host memory.
    hosted: bool = False

    @property
    def bytes(self) -> float:
        return sum(shape.bytes for shape in self.shapes)

    @property
    def memory_bytes(self) -> float:
        """Bytes of those of its arrays that lie in the device's memory."""
        return sum(shape.bytes for shape in self.shapes if not shape.on_chip)

    @property
    def called(self) -> list[str]:
        """Names of the computations that it calls."""
        return re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", self.attributes)


Computation = Mapping[str, Instruction]


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    return len(text) - 1


def parse_instruction(line: str) -> Instruction | None:
    """An instruction of HLO text; None for any other line."""
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    rest = line[found.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    shapes = tuple(
        Shape(name, tuple(int(size) for size in sizes.split(",") if size), CHIP_SPACE in layout)
        for name, sizes, layout in SHAPE.findall(kind)
    )
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inner = rest[opening + 1 : closing]
    return Instruction(
        found[2], shapes, rest[:opening], tuple(NAME.findall(inner)), rest[closing + 1 :], inner, bool(found[1]),
        HOST_SPACE in kind,
    )  # fmt: skip


def parse_module(text: str) -> tuple[Mapping[str, Computation], str]:
    """(computations by name, name of the entry) of a module's text."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in re.sub(r'\n(?="|\}\})', "", text).splitlines():  # notes of a Pallas kernel are lines of their own
        header = re.match(r"(ENTRY )?%?([\w.\-]+) (\(.*\) -> .*)?\{\s*$", line)
        if header and not line.startswith(" "):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := parse_instruction(line)):
            current[instruction.name] = instruction
    return computations, entry


def device_groups(attributes: str) -> list[np.ndarray]:
    """The groups of a collective, as places of devices in the mesh; none where none are named."""
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, dims, order = ([int(size) for size in (text or "").split(",") if size] for text in found.groups())
        return list(np.arange(math.prod(dims)).reshape(dims).transpose(order or None).reshape(shape))
    if found := re.search(r"replica_groups=\{(\{[\d,{} ]+\})\}", attributes):
        return [np.array(group.split(","), int) for group in re.findall(r"\{([\d,]+)\}", found[1])]
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes: list[int] = []
        within: list[int] = []
        for name, size in re.findall(r"'(\w+)'=(\d+)", found[1]):
            part = re.search(rf"'{name}'(?::\((\d+)\)(\d+))?", found[2])  # of an axis that is grouped, or a part of it
            before, middle = (int(part[1]), int(part[2])) if part and part[1] else (1, int(size) if part else 1)
            within += [len(sizes) + 1] * bool(part)
            sizes += [before, middle, int(size) // (before * middle)]
        outer = [axis for axis in range(len(sizes)) if axis not in within]
        places = np.arange(math.prod(sizes)).reshape(sizes).transpose(outer + within)
        return list(places.reshape(-1, math.prod(sizes[axis] for axis in within)))
    return []


def group_size(attributes: str) -> int:
    """Number of chips of a collective."""
    groups = device_groups(attributes)
    return len(groups[0]) if groups else 2


def network_share(attributes: str, box: int) -> float:
    """Of the bytes that a chip sends in a collective, the share that passes its link to other boxes of `box` chips: a
    ring leaves a box once for all of its members there."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        ends = np.array(re.findall(r"\{(\d+),(\d+)", pairs[0]), int) // box
        return float((ends[:, 0] != ends[:, 1]).mean())
    boxes = [(len(set((group // box).tolist())), len(group)) for group in device_groups(attributes)]
    return max((count / size for count, size in boxes if count > 1), default=0.0)
