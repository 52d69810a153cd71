"""Accelerators: peak rates of one chip, and the shapes in which they are rented.

Sources: the pages of each version at cloud.google.com/tpu/docs (v4, v5e, v5p, v6e), and NVIDIA's data sheets of the
A100 80GB SXM, H100 SXM and H200 SXM (dense bfloat16).
"""

import math
import re
from typing import NamedTuple

from pbrl_jax.core.errors import ConfigError, did_you_mean


class Chip(NamedTuple):
    """Peak rates of one chip, in bfloat16 FLOPs per second, bytes and bytes per second."""

    flops: float
    memory: float
    bandwidth: float
    #: To other chips, in one direction, summed over all links.
    link: float
    #: To the host's memory, in one direction.
    host: float
    #: On-demand list price of one chip, US regions.
    dollars_per_hour: float
    shapes: tuple[str, ...]


_GRIDS = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
_BOXES = ("1", "2", "4", "8", "16", "32", "64")

# ASSUMED: 16 GB/s from a TPU chip to its host, which the pages do not state. GPUs: PCIe 4.0 and 5.0 x16.
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1.2e12, 3e11, 1.6e10, 3.22, _CUBES),
    "v5e": Chip(197e12, 16 * 2**30, 8.1e11, 2e11, 1.6e10, 1.2, _GRIDS),
    "v5p": Chip(459e12, 95 * 2**30, 2.765e12, 6e11, 1.6e10, 4.2, _CUBES),
    "v6e": Chip(918e12, 32 * 2**30, 1.64e12, 4.48e11, 1.6e10, 2.7, _GRIDS),
    "a100": Chip(312e12, 80e9, 2.039e12, 3e11, 3.2e10, 3.7, _BOXES),
    "h100": Chip(989e12, 80e9, 3.35e12, 4.5e11, 6.4e10, 9.8, _BOXES),
    "h200": Chip(989e12, 141e9, 4.8e12, 4.5e11, 6.4e10, 10.6, _BOXES),
}
TPUS = ("v4", "v5e", "v5p", "v6e")

#: Of one processor core; only the order of magnitude is meant.
CPU_CORE_FLOPS, CPU_BANDWIDTH = 4e10, 2e10


class Topology(NamedTuple):
    """Chips of one kind in one machine: `v5p:2x2x4`."""

    kind: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.shape}"

    @property
    def chips(self) -> int:
        return math.prod(int(size) for size in self.shape.split("x"))

    @property
    def chips_per_host(self) -> int:
        """Of one virtual machine: TPUs come by fours, v5e and v6e also as one machine of eight; GPUs by eights."""
        most = 8 if not self.is_tpu or (self.kind in ("v5e", "v6e") and self.chips == 8) else 4
        return min(self.chips, most)

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def is_tpu(self) -> bool:
        return self.kind in TPUS


def parse_topology(text: str) -> Topology:
    """The topology of `v5p:2x2x4`, `h100:8`, or of an accelerator type of Google Cloud: `v5litepod-16`, `v6e-16`, and,
    counted in cores, `v4-32` and `v5p-32`.

    Raises:
      ConfigError: an unknown kind or shape; the message lists those that exist.
    """
    if found := re.fullmatch(r"(v5litepod|v4|v5p|v6e)-(\d+)", text):
        kind = {"v5litepod": "v5e"}.get(found[1], found[1])
        chips = int(found[2]) // (2 if kind in ("v4", "v5p") else 1)
        fitting = [shape for shape in CHIPS[kind].shapes if Topology(kind, shape).chips == chips]
        if fitting:
            return Topology(kind, fitting[0])
        raise ConfigError(f"topology {text!r} does not exist. {kind} comes as {', '.join(CHIPS[kind].shapes)}.")
    kind, _, shape = text.partition(":")
    if kind not in CHIPS:
        raise ConfigError(
            f"topology {text!r}: {did_you_mean(kind, CHIPS)} Write it as v5p:2x2x4, v5e:4x4, v5litepod-16 or h100:8."
        )
    if shape not in CHIPS[kind].shapes:
        raise ConfigError(f"topology {text!r} does not exist. {kind} comes as {', '.join(CHIPS[kind].shapes)}.")
    return Topology(kind, shape)
