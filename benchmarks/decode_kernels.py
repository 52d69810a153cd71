"""Which kernels of decoding the TPU compiler takes, for heads of several widths: ours, and jax's two for paged caches.

    pip install -e ".[tpu]"
    TPU_SKIP_MDS_QUERY=1 python benchmarks/decode_kernels.py

No TPU is needed. A cache of slots is a paged one whose pages are in order. Memory beside the arguments shows copies.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

from pbrl_jax.config.tree import MeshConfig
from pbrl_jax.mesh.sharding import make_mesh, on_each_device, replicated
from pbrl_jax.models.decode_attention import Form, tpu_attention

ROWS, POSITIONS, PAGE = 64, 2304, 128


def ragged(query, pages, lengths, numbers):
    """Block sizes are given, since it would ask the devices of this process for them."""
    starts, count = jnp.arange(ROWS + 1, dtype=jnp.int32), jnp.array([ROWS], jnp.int32)
    return ragged_paged_attention(
        query, pages, lengths, numbers, starts, count, num_kv_pages_per_block=2, num_queries_per_block=8
    )


def cases(K: int, G: int, C: int):
    """name -> (kernel, shapes of its arguments): K key heads with G query heads each, of C channels."""
    half, whole, pages = jnp.bfloat16, jnp.int32, ROWS * POSITIONS // PAGE
    rows, numbers = ((ROWS,), whole), ((ROWS, POSITIONS // PAGE), whole)
    query, paged = ((ROWS, K * G, C), half), ((K, pages, PAGE, C), half)
    ours = functools.partial(tpu_attention, form=Form(None, 0.0, PAGE))
    return {
        "ours": (ours, [((ROWS, K, G, C), half), rows, ((), whole), ((ROWS, K, C, POSITIONS), half),
                        ((ROWS, K, POSITIONS, C), half)]),
        "ragged_paged_attention": (ragged, [query, ((pages, PAGE, 2 * K, C), half), rows, numbers]),
        "paged_attention": (functools.partial(paged_attention, pages_per_compute_block=3),
                            [query, paged, paged, rows, numbers]),
    }  # fmt: skip


def main() -> None:
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1").devices
    mesh = make_mesh(MeshConfig(1, 1, 1), list(devices[:1]))
    everywhere = replicated(mesh)
    for shape in ((8, 4, 128), (8, 4, 64), (8, 1, 256)):
        for name, (kernel, sizes) in cases(*shape).items():
            arguments = [jax.ShapeDtypeStruct(*size, sharding=everywhere) for size in sizes]
            try:
                with jax.set_mesh(mesh):
                    run = on_each_device(kernel, tuple(everywhere.spec for _ in sizes), everywhere.spec)
                    made = jax.jit(run).trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
                memory = made.memory_analysis()
                found = f"{memory.temp_size_in_bytes / 1e6:.1f} MB beside {memory.argument_size_in_bytes / 1e6:.0f}"
            except Exception as error:  # whatever a kernel or the compiler refuses with
                found = f"refused: {type(error).__name__} {' '.join(str(error).split())[:100]}"
            print(f"{shape[0]} x {shape[1]} heads of {shape[2]}  {name:>22}: {found}", flush=True)


if __name__ == "__main__":
    main()
