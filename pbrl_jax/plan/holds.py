"""Checks that the compiled update holds neither a parameter replicated on every chip nor a microbatch's logits.

It reads the optimized HLO, whose arrays are those of one chip. Arrays inside a fusion are never in memory.
"""

import math
from collections.abc import Iterator

import jax

from pbrl_jax.config.tree import Config
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.plan.hlo_text import Instruction, Shape, parse_module
from pbrl_jax.plan.shapes import policy_shapes

SMALL = 2**20
"""Parameters of fewer scalars may be replicated: norms and biases."""
LOGITS_SHARE = 0.25
"""An array with the vocabulary's axis counts as logits if it has this share of a microbatch's, and more than a chunk of
train.logprob_chunk."""


def arrays_in_memory(text: str) -> Iterator[tuple[Instruction, Shape, bool]]:
    """(instruction, array, whether it is an argument or result) of all arrays that a program has in memory."""
    computations, entry = parse_module(text)
    fused = {
        name
        for lines in computations.values()
        for line in lines.values()
        if line.opcode == "fusion"
        for name in line.called
    }
    for name, lines in computations.items():
        if name in fused:
            continue
        for line in lines.values():
            outer = name == entry and (line.opcode == "parameter" or line.root)
            for shape in line.shapes:
                yield line, shape, outer


def _axes(sizes) -> tuple[int, ...]:
    """Sizes of an array's axes, sorted and without 1s: invariant under transposition."""
    return tuple(sorted(size for size in sizes if size > 1))


def update_faults(text: str, config: Config, spec: DecoderSpec, mesh_shape: dict[str, int]) -> list[str]:
    """What a compiled update must not hold and does, in words; [] if there is nothing.

    Args:
      text: the optimized HLO of `train.update.make_update`'s program.
      mesh_shape: sizes of the mesh axes.

    Parameters stacked over layers must never be replicated. The embedding and the output matrix may be gathered while
    they are in use, like every layer's matrices, but must not be replicated arguments or results.
    """
    leaves = [leaf.shape for leaf in jax.tree.leaves(policy_shapes(spec)) if leaf.size >= SMALL]
    stacked = {_axes(shape) for shape in leaves if shape[0] == spec.layers and len(shape) > 2}
    flat = {_axes(shape) for shape in leaves} - stacked
    cut = mesh_shape["fsdp"] * mesh_shape["tensor"] > 1
    shards, tensor = mesh_shape["data"] * mesh_shape["fsdp"], mesh_shape["tensor"]
    P, G = config.train.prompts_per_step, config.algo.num_generations
    groups = config.train.microbatch_prompts or P
    rows = groups * (config.train.microbatch_samples or G) / shards
    chunk = max(1, config.train.logprob_chunk // groups) * groups / shards
    words = {spec.vocab_size, spec.vocab_size // tensor}
    positions = max(LOGITS_SHARE * rows * config.rollout.max_completion_length, chunk + 1)
    limit = positions * spec.vocab_size / tensor
    widths = {spec.width, spec.width // mesh_shape["fsdp"]}
    matrices = {_axes((width, size)) for width in widths for size in words}
    faults = set()
    for line, shape, outer in arrays_in_memory(text):
        axes = _axes(shape.sizes)
        if cut and (axes in stacked or outer and axes in flat):
            faults.add(f"a replicated parameter: {shape.kind}{list(shape.sizes)} ({line.opcode} {line.name})")
        if words & set(axes) and math.prod(axes) >= limit and axes not in matrices:
            faults.add(f"logits: {shape.kind}{list(shape.sizes)} ({line.opcode} {line.name})")
    return sorted(faults)
