"""Arrays that the compiled update must not hold: an unsharded parameter, or all logits of a microbatch.

They are found in the optimized HLO, whose arrays are those of one chip. Arrays inside a fusion are never in memory.
"""

import math
from collections.abc import Iterator

import jax

from pbrl_jax.config.tree import Config
from pbrl_jax.models.logprobs import chunk_positions
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.plan.hlo_text import Instruction, Shape, parse_module
from pbrl_jax.plan.shapes import policy_shapes
from pbrl_jax.train.programs import microbatch_size

#: Parameters of fewer scalars may be whole on every chip: norms and biases.
SMALL = 2**20
#: An array with the vocabulary's axis that holds this share of a microbatch's logits, and more than a chunk of
#: train.logprob_chunk, counts as those.
LOGITS_SHARE = 0.25


def arrays_in_memory(text: str) -> Iterator[tuple[Instruction, Shape, bool]]:
    """(instruction, array, whether it is an argument or result of the program) of all arrays of a program in memory."""
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
    """Sorted sizes of an array's axes without those of 1, which a transpose does not change."""
    return tuple(sorted(size for size in sizes if size > 1))


def update_faults(text: str, config: Config, spec: DecoderSpec, mesh_shape: dict[str, int]) -> list[str]:
    """Descriptions of the arrays that a compiled update holds and must not.

    Args:
      text: the optimized HLO of `train.programs.make_update`'s program.
      mesh_shape: sizes of the mesh axes.

    Parameters stacked over layers must never be unsharded, not even temporarily. The embedding and the output matrix
    may be gathered while they are in use, as each layer's matrices are, but must be sharded as arguments and results.
    """
    leaves = [leaf.shape for leaf in jax.tree.leaves(policy_shapes(spec)) if leaf.size >= SMALL]
    stacked = {_axes(shape) for shape in leaves if shape[0] == spec.layers and len(shape) > 2}
    flat = {_axes(shape) for shape in leaves} - stacked
    cut = mesh_shape["fsdp"] * mesh_shape["tensor"] > 1
    shards, tensor = mesh_shape["data"] * mesh_shape["fsdp"], mesh_shape["tensor"]
    groups = microbatch_size(config)
    rows = groups * (config.train.microbatch_samples or config.algo.num_generations) / shards
    asked = chunk_positions(config.train.logprob_chunk, spec.vocab_size, shards, tensor)
    chunk = max(1, asked // groups) * groups / shards
    words = {spec.vocab_size, spec.vocab_size // tensor}
    positions = max(LOGITS_SHARE * rows * config.rollout.max_completion_length, chunk + 1)
    limit = positions * spec.vocab_size / tensor
    widths = {spec.width, spec.width // mesh_shape["fsdp"]}
    matrices = {_axes((width, size)) for width in widths for size in words}
    faults = set()
    for line, shape, outer in arrays_in_memory(text):
        axes = _axes(shape.sizes)
        if cut and (axes in stacked or outer and axes in flat):
            faults.add(f"a whole parameter: {shape.kind}{list(shape.sizes)} ({line.opcode} {line.name})")
        if words & set(axes) and math.prod(axes) >= limit and axes not in matrices:
            faults.add(f"logits: {shape.kind}{list(shape.sizes)} ({line.opcode} {line.name})")
    return sorted(faults)
