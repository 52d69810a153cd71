"""Bytes and products of the update and of one layer's attention on a TPU, compiled ahead of time for a topology.

    pip install -e ".[tpu]"
    TPU_SKIP_MDS_QUERY=1 python benchmarks/update_bytes.py --response-length 8192 --json update.json

No TPU is needed, only the compiler in libtpu. The attention is that of one prompt group on one chip, its value and its
gradient with the forward pass made again; the update is that of a machine's configuration, beside the count by hand.
"""

import argparse
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from pbrl_jax import with_values
from pbrl_jax.config.tree import MeshConfig
from pbrl_jax.mesh.sharding import make_mesh, replicated
from pbrl_jax.models.layouts import SharedPrefix
from pbrl_jax.plan.analytic import update_estimate
from pbrl_jax.plan.chips import parse_topology
from pbrl_jax.plan.programs import compile_ahead, update_need
from pbrl_jax.plan.roofline import mesh_sizes, on_topology
from pbrl_jax.plan.shapes import run_models
from pbrl_jax.run.config_file import load_config


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Bytes of the update and of its attention, compiled for a TPU.")
    parser.add_argument("--config", default="configs/machines/llama31_8b_v5p_8.py")
    parser.add_argument("--topology", default="v5p:2x2x1")
    parser.add_argument("--response-length", type=int, default=2048)
    parser.add_argument("--attention", default="auto", help="policy.attention")
    parser.add_argument("--packed", type=float, default=0.0, help="share of the slots in one stream")
    parser.add_argument("--what", nargs="+", default=["attention", "update"], choices=("attention", "update"))
    parser.add_argument("--json", help="file for the results")
    return parser.parse_args(arguments)


def compile_attention(spec, samples: int, prompt: int, response: int, packed: float, mesh: Mesh):
    """One layer's attention of one group: value and gradient, as a layer under remat has it."""
    streams, length = (1, math.ceil(samples * response * packed / 128) * 128) if packed else (samples, response)
    tokens = prompt + streams * length

    def run(query, key, value, valid, segment, weights):
        layout = SharedPrefix(valid, segment if packed else None, streams, samples if packed else 1)

        def total(*inputs):
            return (layout.attend(spec.attention, *inputs, None, 0)[0].astype(jnp.float32) * weights).sum()

        return jax.value_and_grad(jax.checkpoint(total), argnums=(0, 1, 2))(query, key, value)

    def shape(dtype, *sizes):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=replicated(mesh))

    arrays = [shape(spec.dtype, 1, tokens, heads, spec.head_dim) for heads in (spec.heads, *[spec.kv_heads] * 2)]
    weights = shape("float32", 1, tokens, spec.heads, spec.head_dim)
    more = shape("bool", 1, prompt), shape("int32", 1, streams, length), weights
    return compile_ahead(mesh, jax.jit(run), *arrays, *more)


def found_of(cost, chip, temporary: float, seconds: float) -> dict[str, float]:
    return {
        "flops": cost.flops, "compute_ms": cost.flops / chip.flops * 1e3, "bytes": cost.bytes,
        "memory_ms": cost.bytes / chip.bandwidth * 1e3, "temporary_bytes": temporary, "compile_seconds": seconds,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    flags = parse(arguments)
    config = with_values(
        load_config(flags.config), rollout={"max_completion_length": flags.response_length},
        policy={"attention": flags.attention},
    )  # fmt: skip
    topology, models = parse_topology(flags.topology), run_models(config)
    spec, chip = models.policy, topology.chip
    devices = list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name).devices)
    G, T, R = config.algo.num_generations, config.rollout.max_prompt_length, flags.response_length
    found: dict[str, Any] = {"flags": vars(flags)}
    if "attention" in flags.what:
        made = compile_attention(spec, G, T, R, flags.packed, make_mesh(MeshConfig(1, 1, 1), devices[:1]))
        found["attention"] = found_of(made.cost, chip, made.memory.temporary, made.seconds)
    if "update" in flags.what:
        mesh = make_mesh(config.mesh, devices)
        need = update_need(config, models, mesh, 0.0)
        found["update"] = found_of(need.cost, chip, need.temp_bytes, need.compile_seconds)
        by_hand = update_estimate(config, on_topology(models, topology), mesh_sizes(config, topology.chips))
        found["by hand"] = found_of(by_hand.cost, chip, by_hand.temp_bytes, 0.0)
    for name, one in found.items():
        if name != "flags":
            print(f"{name}, G {G}, T {T}, R {R}, attention {flags.attention}: {one['flops'] / 1e12:.1f} TFLOP "
                  f"({one['compute_ms']:.1f} ms), {one['bytes'] / 1e9:.1f} GB ({one['memory_ms']:.1f} ms), temporaries "
                  f"{one['temporary_bytes'] / 1e9:.2f} GB")  # fmt: skip
    if flags.json:
        with open(flags.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
