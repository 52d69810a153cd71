"""Bytes that one token of decoding moves on a TPU, and what its program holds, compiled ahead of time for a topology.

    pip install -e ".[tpu]"
    TPU_SKIP_MDS_QUERY=1 python benchmarks/decode_bytes.py --json decode.json

No TPU is needed, only the compiler in libtpu; the 32 layers of the default take some minutes. The ideal is that each
chip reads the matrices that it holds, the caches of its rows at full length, and the caches of its prompts, once.
"""

import argparse
import dataclasses
import json
import math

import jax
from jax.experimental import topologies

from pbrl_jax import Config, with_values
from pbrl_jax.config.tree import MeshConfig
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.models.slots import BLOCK
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
    if flags.json:
        with open(flags.json, "w", encoding="utf-8") as file:
            json.dump({"flags": vars(flags)} | found, file, indent=1)


if __name__ == "__main__":
    main()
