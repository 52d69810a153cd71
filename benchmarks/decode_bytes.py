"""Bytes that one token of decoding moves on a TPU, and what its program holds, compiled ahead of time for a topology.

    pip install -e ".[tpu]"
    TPU_SKIP_MDS_QUERY=1 python benchmarks/decode_bytes.py --json decode.json

No TPU is needed, only the compiler in libtpu; the 32 layers of the default take some minutes. The ideal is that each
chip reads the matrices that it holds and the caches of its rows at full length once. The compiler counts a kernel's
arguments as read whole; what it reads at other lengths is counted by hand.
"""

import argparse
import dataclasses
import json
import math

import jax
import numpy as np
from jax.experimental import topologies

from pbrl_jax import Config, with_values
from pbrl_jax.config.tree import MeshConfig
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.models.decode_attention import TPU_BLOCKS
from pbrl_jax.models.slots import BLOCK, slot_positions
from pbrl_jax.models.specs import DECODERS
from pbrl_jax.plan.programs import compile_ahead, decode_cost, slot_shapes
from pbrl_jax.rollout.slots import slot_programs


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Bytes a token of decoding moves, compiled for a TPU.")
    parser.add_argument("--preset", default="llama31_8b", help="a decoder of pbrl_jax.models.specs")
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than the preset's; 0: all")
    parser.add_argument("--topology", default="v5p:2x2x1", help="for jax.experimental.topologies; cpu: this machine")
    parser.add_argument("--mesh", type=int, nargs=3, default=(1, 4, 1), metavar=("DATA", "FSDP", "TENSOR"))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--prompt-length", type=int, default=256)
    parser.add_argument("--response-length", type=int, default=2048)
    parser.add_argument("--weights", default="whole", choices=("whole", "tensor", "as_trained"))
    parser.add_argument("--attention", default="auto", choices=("auto", "portable"), help="policy.decode_attention")
    parser.add_argument("--weight-dtype", default="model", choices=("model", "int8"))
    parser.add_argument("--kv-dtype", default="model", choices=("model", "int8"))
    parser.add_argument("--mean", type=float, default=0.2, help="mean length of responses, as a share of the longest")
    parser.add_argument("--json", help="file for the results")
    return parser.parse_args(arguments)


def compile_decoding(flags: argparse.Namespace):
    """(spec, the compiled loop over tokens, shapes of its arguments)."""
    chips = math.prod(flags.mesh)
    if flags.topology == "cpu":
        devices = jax.devices("cpu")[:chips]
    else:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=flags.topology).devices
    spec = dataclasses.replace(DECODERS[flags.preset], dtype="bfloat16", remat="full")
    spec = dataclasses.replace(
        spec, layers=flags.layers or spec.layers, decode_attention=flags.attention, weight_dtype=flags.weight_dtype,
        kv_dtype=flags.kv_dtype,
    )  # fmt: skip
    config = with_values(
        Config(), algo={"num_generations": flags.samples}, train={"prompts_per_step": flags.prompts},
        rollout={"max_prompt_length": flags.prompt_length, "max_completion_length": flags.response_length},
    )  # fmt: skip
    mesh = make_mesh(MeshConfig(*flags.mesh), list(devices))
    programs = slot_programs(spec, flags.samples, flags.response_length, flags.weights)
    at, _ = slot_shapes(config, spec, mesh, programs)
    return spec, compile_ahead(mesh, programs.segment, at.params, at.slots, at.sampling, at.until), at


def chip_bytes(tree) -> float:
    """Bytes of a tree of shapes on one device."""
    return float(sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)))


def slots_of_a_chip(shapes) -> int:
    """Rows that decode at a time on a chip."""
    rows = shapes.slots.rows.row_S
    return rows.sharding.shard_shape(rows.shape)[0]


def positions_read(flags: argparse.Namespace, slots: int) -> dict[str, float]:
    """Mean positions of the cache that a row reads, counted by hand at log-normal lengths (sigma 1, cut at the longest)
    and at any time of a refilled rollout, when a long row is in a slot as often as it has tokens: in blocks of the
    kernel up to the row's own position, and up to that of the longest row in the slots."""
    rng, longest = np.random.default_rng(0), flags.response_length
    lengths = np.minimum(np.exp(rng.normal(size=100_000)) * flags.mean * longest / np.exp(0.5), longest) // 1 + 1
    running = rng.choice(lengths, (1000, slots), p=lengths / lengths.sum())
    written = flags.prompt_length + rng.random(running.shape) * running
    block = next(size for size in TPU_BLOCKS if slot_positions(flags.prompt_length + longest) % size == 0)
    return {
        "own": float((np.ceil(written / block) * block).mean()),
        "longest": float((np.ceil(written.max(axis=1) / BLOCK) * BLOCK).mean()),
    }


def main(arguments: list[str] | None = None) -> None:
    flags = parse(arguments)
    spec, loop, shapes = compile_decoding(flags)
    matrices = {name: leaf for name, leaf in shapes.params.items() if name != "embed" or spec.tied_embeddings}
    ideal = {"matrices": chip_bytes(matrices), "rows": chip_bytes(shapes.slots.cache)}
    cost = decode_cost(loop)
    token = cost.token.plus(cost.block, max(1, shapes.slots.cache.positions // BLOCK))
    found = {
        "token_bytes": token.bytes, "ideal_bytes": sum(ideal.values()), "ideal": ideal,
        "ratio": token.bytes / sum(ideal.values()), "temporary_bytes": loop.memory.temporary,
        "sent_bytes": token.collective_bytes, "compile_seconds": loop.seconds,
    }  # fmt: skip
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in ideal.items())
    print(f"{flags.preset}, {spec.layers} layers, {flags.topology}, {flags.prompts} x {flags.samples} rows of "
          f"{flags.response_length} tokens, weights {flags.weights}, one chip:")  # fmt: skip
    print(f"  a token moves {found['token_bytes'] / 1e9:.2f} GB, ideal {found['ideal_bytes'] / 1e9:.2f} ({parts})")
    print(f"  ratio {found['ratio']:.3f}; temporaries {found['temporary_bytes'] / 1e9:.2f} GB")
    each = chip_bytes(shapes.slots.cache) / shapes.slots.cache.positions
    read = {name: count * each for name, count in positions_read(flags, slots_of_a_chip(shapes)).items()}
    print(f"  by hand, at lengths of mean {flags.mean} of the longest, a token reads {read['own'] / 1e9:.2f} GB of the "
          f"cache as far as each row has written, {read['longest'] / 1e9:.2f} as far as the longest")  # fmt: skip
    found["read_bytes"] = read
    if flags.json:
        with open(flags.json, "w", encoding="utf-8") as file:
            json.dump({"flags": vars(flags)} | found, file, indent=1)


if __name__ == "__main__":
    main()
