"""Memory and time of loading a Hugging Face folder, against the size of its files.

    python benchmarks/load_memory.py --layers 16 --json load.json

A random Llama is written file by file and loaded three times, each in a process of its own: in the stored bfloat16, in
float32, and in bfloat16 over eight virtual devices (data 2, fsdp 2, tensor 2). On a CPU the devices' memory is the
host's, so the least possible growth is the parameters themselves; what is beyond it is what loading needs. `anonymous`
is memory that only the process has, `file pages` what it had mapped of the files, which the system takes back at need.
"""

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

MESH = (2, 2, 2)
CASES = {"bfloat16": ("bfloat16", False), "float32": ("float32", False), "bfloat16 on 8 devices": ("bfloat16", True)}
FILE_BYTES = 200_000_000
SAMPLE_SECONDS = 0.002
FIELDS = {"anonymous": "RssAnon", "file pages": "RssFile"}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Memory and time of loading a Hugging Face folder.")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--ffn", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=32_768)
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def spec_of(flags: argparse.Namespace):
    """A Llama of these sizes."""
    from pbrl_jax.models.specs import DecoderSpec

    heads = flags.width // 64
    return DecoderSpec(
        vocab_size=flags.vocab, width=flags.width, layers=flags.layers, heads=heads, kv_heads=heads // 4, head_dim=64,
        ffn=flags.ffn, tied_embeddings=False,
    )  # fmt: skip


def write_model(folder: Path, spec) -> int:
    """A random checkpoint in bfloat16, one tensor in memory at a time; the bytes of its tensors."""
    import jax.numpy as jnp
    import numpy as np

    from pbrl_jax.weights.hf_decoder import decoder_names, hf_config
    from pbrl_jax.weights.safetensors_file import Planned, write_safetensors
    from pbrl_jax.weights.writing import file_plan

    kind, planned = np.dtype(jnp.bfloat16), []
    for path, stored in decoder_names(spec).items():
        shape = stored.shape
        if len(shape) == 3:  # heads and their channels are one axis of a checkpoint's
            cut = 2 if path.endswith("out/kernel") else 1
            shape = (math.prod(shape[:cut]), math.prod(shape[cut:]))
        planned += [Planned(name, shape[::-1] if stored.transpose else shape, kind) for name in stored.names()]
    rng, where = np.random.default_rng(0), {}
    files = file_plan(planned, FILE_BYTES)
    for number, tensors in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        arrays = (rng.standard_normal(tensor.shape, np.float32).astype(kind) for tensor in tensors)
        write_safetensors(folder / name, tensors, arrays)
        where |= {tensor.name: name for tensor in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text(json.dumps(hf_config(spec, None, "bfloat16")))
    return sum(tensor.size for tensor in planned)


def memory() -> dict[str, int]:
    """Bytes of this process by kind (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[field].split()[0]) * 1024 for name, field in FIELDS.items()}


def sampled(stop: threading.Event, peak: dict[str, int]) -> None:
    """Raises `peak` to the largest value seen until `stop` is set."""
    while not stop.is_set():
        for name, value in memory().items():
            peak[name] = max(peak[name], value)
        time.sleep(SAMPLE_SECONDS)


def leaf_bytes(params) -> Iterator[bytes]:
    import jax
    import numpy as np

    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(params), key=lambda item: str(item[0])):
        yield f"{path} {leaf.dtype} {leaf.shape}".encode() + np.asarray(leaf).tobytes()


def measure(folder: str, case: str) -> dict:
    """One load in this process."""
    import jax

    from pbrl_jax import MeshConfig
    from pbrl_jax.mesh.sharding import make_mesh
    from pbrl_jax.weights.policies import load_policy

    kind, sharded = CASES[case]
    mesh = make_mesh(MeshConfig(*MESH)) if sharded else None
    jax.block_until_ready(jax.device_put(0.0))
    before = memory()
    peak, stop = dict(before), threading.Event()
    watcher = threading.Thread(target=sampled, args=(stop, peak))
    watcher.start()
    started = time.monotonic()
    policy = load_policy(folder, mesh=mesh, param_dtype=kind)
    seconds = time.monotonic() - started
    stop.set()
    watcher.join()
    leaves = jax.tree.leaves(policy.params)
    digest = hashlib.sha256()
    for block in leaf_bytes(policy.params):
        digest.update(block)
    held = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    return {
        "case": case, "seconds": seconds, "parameters": sum(leaf.nbytes for leaf in leaves), "on devices": held,
        "largest parameter": max(leaf.nbytes for leaf in leaves), "sha256": digest.hexdigest(),
        **{f"peak {name}": peak[name] - before[name] for name in FIELDS},
    }  # fmt: skip


def run(flags: argparse.Namespace) -> list[dict]:
    """All cases, each in a process of its own."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        size = write_model(Path(place), spec_of(flags))
        for case, (_, sharded) in CASES.items():
            devices = f" --xla_force_host_platform_device_count={math.prod(MESH)}" if sharded else ""
            environment = {**os.environ, "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + devices}
            command = [sys.executable, __file__, "--folder", place, "--case", case]
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            rows.append({**json.loads(done.stdout.splitlines()[-1]), "files": size})
    return rows


def table(rows: list[dict]) -> str:
    """The results in MB."""
    columns = ("files", "parameters", "on devices", "largest parameter", "peak anonymous", "peak file pages")
    lines = ["| case | seconds | " + " | ".join(f"{name}, MB" for name in columns) + " |"]
    lines.append("|---|" + "---|" * (len(columns) + 1))
    for row in rows:
        cells = [f"{row[name] / 1e6:.0f}" for name in columns]
        lines.append(f"| {row['case']} | {row['seconds']:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    flags = parse(arguments)
    if flags.case:
        print(json.dumps(measure(flags.folder, flags.case)))
        return
    rows = run(flags)
    print(table(rows))
    if flags.json:
        Path(flags.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
