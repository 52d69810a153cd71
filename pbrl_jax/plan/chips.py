"""Accelerators: rates of one JAX device, and the shapes in which they are rented.

Peak rates. TPUs: the pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x (Ironwood)" of Google's Cloud TPU
documentation; the data center network of v5e (two cards of 100 Gb/s for eight chips) and v5p (50 Gb/s a chip) is from
there, ASSUMED are as much as v5p's for v4, and twice as much for v6e and v7x. GPUs: NVIDIA's data sheets (dense
bfloat16) of the A100 80GB SXM, H100 SXM, H200 SXM, DGX B200, L4 and A10, and the white papers of the architectures Ada
(RTX 4090) and Ampere (RTX 3090). Between boxes of GPUs: one network card for each, of 200 Gb/s (DGX A100) or 400 Gb/s
(DGX H100, DGX B200); ASSUMED 100 Gb/s for a box of eight cards of 24 GB, which reach each other through PCIe. ASSUMED
16 GB/s from a TPU chip to its host, which the pages do not state; for GPUs PCIe 4.0 and 5.0 x16. Prices only order
machines.

Reached rates, from which the expected seconds follow. `compute_share`, of the peak FLOPs in training:

- v4 0.567 (22B, 64 chips): MaxText, "High Performance Model Configs on TPU v4".
- v5e 0.611 (16B, 256 chips): MaxText, "High Performance Model Training Configs on TPU v5e".
- v5p 0.654 (Llama 2 70B, 512 chips), v6e 0.455 (Llama 3.1 8B, 256 chips): MaxText, "Optimized Models Tiering".
- H100 0.497 (Llama 2 7B, one box: 492 TFLOP/s a GPU): MaxText, "High Performance Model Configs on A3 GPU".
- RTX 4090 0.5 (in eight bits): "LLMQ: Efficient Lower-Precision Pretraining for Consumer GPUs", arXiv 2512.15306.
- ASSUMED, as nothing was found: v7x as v6e; A100, H200 and B200 as H100; the other cards of 24 GB as the RTX 4090.

These shares count no recomputation. The plan does, so that an update with `policy.remat full` may be faster.

`memory_share`, of the memory's bandwidth in decoding:

- v7x 0.86 (Llama 3 8B, at most): the attention kernel of vLLM's TPU backend, "Ragged Paged Attention: A
  High-Performance and Flexible LLM Inference Kernel for TPU", arXiv 2604.15464. ASSUMED for the other TPUs.
- A100 0.77 (Llama 3.1 8B, vLLM 0.23, one request at a time): J. Musgrave, "vLLM throughput-latency sweep on NVIDIA
  A100". ASSUMED for H100, H200 and B200.
- L4 0.81 (a model of 7B, one request, no serving engine): "Memory-Bound but Not Bandwidth-Limited", arXiv 2605.30571,
  which has 0.27 for an H100, whose kernels end before the next ones are launched. ASSUMED for other cards of 24 GB.
"""

import math
import re
from typing import NamedTuple

from pbrl_jax.core.errors import ConfigError, did_you_mean

#: Share of a device's memory that a plan may fill; the rest goes to the runtime and to fragmentation.
USABLE = 0.95
#: The same for GPUs: the share of the memory that JAX takes at its start, as the launch scripts set it by
#: XLA_CLIENT_MEM_FRACTION (launch/environment.sh); the CUDA context and NCCL's buffers lie outside of it.
GPU_POOL = 0.9
#: What JAX takes where that variable is not set ("GPU memory allocation", docs.jax.dev).
DEFAULT_POOL = 0.75
#: ASSUMED: share of their rates that links, networks and copies to the host reach.
LINK_SHARE = 0.8
#: GPUs of a box.
BOX = 8


class Chip(NamedTuple):
    """Rates of one device, in bfloat16 FLOPs per second, bytes and bytes per second."""

    flops: float
    memory: float
    bandwidth: float
    #: To other devices of the slice or box, in one direction, summed over all links.
    link: float
    #: To the host's memory, in one direction.
    host: float
    #: On-demand list price of one device, US regions.
    dollars_per_hour: float
    shapes: tuple[str, ...]
    #: To other slices or boxes, in one direction.
    network: float = math.inf
    #: Shares of `flops` and `bandwidth` that measured programs reach; see the module's sources.
    compute_share: float = 1.0
    memory_share: float = 1.0
    #: Share of the memory that a plan may fill.
    pool: float = USABLE
    #: JAX devices of one chip.
    devices: int = 1

    @property
    def room(self) -> float:
        """Bytes that a plan may fill."""
        return self.pool * self.memory


_GRIDS = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
_BOXES = ("1", "2", "4", "8", "16", "32", "64")


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1.2e12, 3e11, 1.6e10, 3.22, _CUBES, 6.25e9, 0.567, 0.86),
    "v5e": Chip(197e12, 16 * 2**30, 8.1e11, 2e11, 1.6e10, 1.2, _GRIDS, 3.125e9, 0.611, 0.86),
    "v5p": Chip(459e12, 95 * 2**30, 2.765e12, 6e11, 1.6e10, 4.2, _CUBES, 6.25e9, 0.654, 0.86),
    "v6e": Chip(918e12, 32 * 2**30, 1.64e12, 4e11, 1.6e10, 2.7, _GRIDS, 1.25e10, 0.455, 0.86),
    # JAX sees the two chiplets of a v7x chip as devices: half of the chip's rates and of its ASSUMED price.
    "v7x": Chip(1153.5e12, 96 * 2**30, 3.69e12, 3e11, 1.6e10, 6.0, _CUBES, 6.25e9, 0.455, 0.86, devices=2),
    "a100": Chip(312e12, 80e9, 2.039e12, 3e11, 3.2e10, 3.7, _BOXES, 2.5e10, 0.497, 0.77, GPU_POOL),
    "h100": Chip(989e12, 80e9, 3.35e12, 4.5e11, 6.4e10, 9.8, _BOXES, 5e10, 0.497, 0.77, GPU_POOL),
    "h200": Chip(989e12, 141e9, 4.8e12, 4.5e11, 6.4e10, 10.6, _BOXES, 5e10, 0.497, 0.77, GPU_POOL),
    "b200": Chip(2250e12, 180e9, 8e12, 9e11, 6.4e10, 14.2, _BOXES, 5e10, 0.497, 0.77, GPU_POOL),
    "l4": Chip(121e12, 24e9, 3e11, 3.2e10, 3.2e10, 0.7, _BOXES, 1.5625e9, 0.5, 0.81, GPU_POOL),
    "a10": Chip(125e12, 24e9, 6e11, 3.2e10, 3.2e10, 1.0, _BOXES, 1.5625e9, 0.5, 0.81, GPU_POOL),
    "rtx4090": Chip(165e12, 24e9, 1.008e12, 3.2e10, 3.2e10, 0.7, _BOXES, 1.5625e9, 0.5, 0.81, GPU_POOL),
    "rtx3090": Chip(71e12, 24e9, 9.36e11, 3.2e10, 3.2e10, 0.4, _BOXES, 1.5625e9, 0.5, 0.81, GPU_POOL),
}
#: Kinds that the TPU compiler calls by another name.
COMPILER_KINDS = {"v7x": "tpu7x"}
TPUS = ("v4", "v5e", "v5p", "v6e", "v7x")
#: How the names that devices give themselves (`jax.Device.device_kind`) begin a known kind.
DEVICE_KINDS = {
    r"tpu v4$": "v4", r"tpu v5( lite|e)": "v5e", r"tpu v5(p|$)": "v5p", r"tpu v6( lite|e)": "v6e", r"tpu7x": "v7x",
    r"\ba100\b": "a100", r"\bh100\b": "h100", r"\bh200\b": "h200", r"\bb200\b": "b200", r"\bl4\b": "l4",
    r"\ba10g?\b": "a10", r"rtx 4090\b": "rtx4090", r"rtx 3090\b": "rtx3090",
}  # fmt: skip

#: Of one processor core; only the order of magnitude is meant.
CPU_CORE_FLOPS, CPU_BANDWIDTH = 4e10, 2e10


def known_chip(device_kind: str) -> Chip | None:
    """The chip of a device of this kind; None for one that is not known here."""
    return next((CHIPS[name] for kind, name in DEVICE_KINDS.items() if re.search(kind, device_kind.lower())), None)


class Topology(NamedTuple):
    """Chips of one kind: a slice of TPUs (`v5p:2x2x4`) or several (`2xv5p:2x2x4`), or GPUs in boxes of eight."""

    kind: str
    shape: str
    slices: int = 1

    @property
    def name(self) -> str:
        return f"{f'{self.slices}x' * (self.slices > 1)}{self.kind}:{self.shape}"

    @property
    def compiler_name(self) -> str:
        """The TPU compiler's name of one slice."""
        return f"{COMPILER_KINDS.get(self.kind, self.kind)}:{self.shape}"

    @property
    def slice_chips(self) -> int:
        """JAX devices of one slice."""
        return math.prod(int(size) for size in self.shape.split("x")) * self.chip.devices

    @property
    def chips(self) -> int:
        """JAX devices: chips, or the two halves of each v7x chip."""
        return self.slice_chips * self.slices

    @property
    def box(self) -> int:
        """Devices that reach each other without the network: those of a slice, or of a box of GPUs."""
        return self.slice_chips if self.is_tpu else min(self.chips, BOX)

    @property
    def chips_per_host(self) -> int:
        """Of one virtual machine: TPU chips come by fours, v5e and v6e also as one machine of eight; GPUs by eights."""
        most = BOX if not self.is_tpu or (self.kind in ("v5e", "v6e") and self.slice_chips == 8) else 4
        return min(self.slice_chips, most * self.chip.devices)

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def is_tpu(self) -> bool:
        return self.kind in TPUS


def parse_topology(text: str) -> Topology:
    """The topology of `v5p:2x2x4`, `h100:8`, or of an accelerator type of Google Cloud: `v5litepod-16`, `v6e-16`, and,
    counted in cores, `v4-32`, `v5p-32`. `2xv5p-32` are two slices, `2xh100:8` are two boxes, as `h100:16`.

    Raises:
      ConfigError: an unknown kind or shape; the message lists those that exist.
    """
    if several := re.fullmatch(r"(\d+)x([a-z].*)", text):
        one, slices = parse_topology(several[2]), int(several[1])
        if one.is_tpu and one.slices == 1 and slices > 0:
            return one._replace(slices=slices)
        return parse_topology(f"{one.kind}:{slices * one.chips}")
    if found := re.fullmatch(r"(v5litepod|v4|v5e|v5p|v6e)-(\d+)", text):
        kind = {"v5litepod": "v5e"}.get(found[1], found[1])
        chips = int(found[2]) // (2 if kind in ("v4", "v5p") else 1)
        fitting = [shape for shape in CHIPS[kind].shapes if Topology(kind, shape).chips == chips]
        if fitting:
            return Topology(kind, fitting[0])
        raise ConfigError(f"topology {text!r} does not exist. {kind} comes as {', '.join(CHIPS[kind].shapes)}.")
    kind, _, shape = text.partition(":")
    kind = {name: ours for ours, name in COMPILER_KINDS.items()}.get(kind, kind)
    if kind not in CHIPS:
        raise ConfigError(
            f"topology {text!r}: {did_you_mean(kind, CHIPS)} Write it as v5p:2x2x4, v5e:4x4, v5litepod-16 or h100:8."
        )
    if shape not in CHIPS[kind].shapes:
        raise ConfigError(f"topology {text!r} does not exist. {kind} comes as {', '.join(CHIPS[kind].shapes)}.")
    return Topology(kind, shape)
