"""Tokens a second of a rollout against the mean length of its responses, with and without refill, beside other engines.

    python benchmarks/rollout.py --shape tiny --json tiny.json
    python benchmarks/rollout.py --shape llama135m --transformers .peers/trl/bin/python
    python benchmarks/rollout.py --shape llama135m --folder MODEL --write-only
    bash launch/vllm.sh serve MODEL --dtype float32 --enforce-eager --max-model-len 320 --skip-tokenizer-init
    python benchmarks/rollout.py --shape llama135m --folder MODEL --vllm http://localhost:8000

A random model answers random prompts; how long each row becomes is drawn first, log-normal with `--sigma`, and the same
for every engine: ours samples the end of sequence there, transformers stops rows by a StoppingCriteria, a vLLM server
gets max_tokens and ignore_eos for each row. `batches` decodes as many rows as there are slots until the longest of them
ends, `refill` gives the slot of a row that has ended to the next one. Here a server answers alone, at drawn lengths;
its CPU-seconds are not counted. benchmarks/vllm_rollout.py measures `rollout.engine vllm` at full length, with weights.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pbrl_jax.core.records import PromptBatch, Rollout
from pbrl_jax.models.decoder import init_decoder
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.rollout import generate, slots
from pbrl_jax.rollout.refill import Queue, make_programs, slot_sizes, until
from pbrl_jax.rollout.sampling import row_keys, sample, sampling_params
from pbrl_jax.text.tokenizers import MissingTokenizer
from pbrl_jax.weights.hf_export import export_policy
from pbrl_jax.weights.policies import Policy

SHAPES = {
    "tiny": {"vocab_size": 8192, "width": 256, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 64, "ffn": 1024},
    "llama135m": {
        "vocab_size": 49152, "width": 576, "layers": 30, "heads": 9, "kv_heads": 3, "head_dim": 64, "ffn": 1536,
    },
}  # fmt: skip
EOS, OTHER = 2, 3
#: Folded into a row's key for the number that its length derives from; beyond every token's index.
LENGTH = 2**30


class Work(NamedTuple):
    """What every engine does: prompts, and the length of each response."""

    prompts: PromptBatch
    key: Any
    lengths_B: np.ndarray


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), default="tiny")
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than the shape's; 0: all")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--slots", type=int, default=32, help="rows that decode at a time, in every engine")
    parser.add_argument("--prompt-length", type=int, default=64)
    parser.add_argument("--response-length", type=int, default=256)
    parser.add_argument("--means", type=float, nargs="+", default=[1.0, 0.2],
                        help="mean lengths, as shares of the longest; 1 is full length")  # fmt: skip
    parser.add_argument("--sigma", type=float, default=1.0, help="standard deviation of the lengths' logarithm")
    parser.add_argument("--schedules", action="store_true", help="count computed tokens of schedules, and end")
    parser.add_argument("--rounds", type=int, default=2, help="measured rounds, of which the best counts")
    parser.add_argument("--only", default="batches,refill", help="which of ours")
    parser.add_argument("--transformers", metavar="PYTHON", help="an interpreter that has transformers and torch")
    parser.add_argument("--vllm", metavar="ADDRESS", help="a server of the model in --folder, http://HOST:PORT")
    parser.add_argument("--folder", help="where the model is written; default: a temporary folder")
    parser.add_argument("--write-only", action="store_true", help="write the model and end")
    parser.add_argument("--json", help="file for the results")
    return parser.parse_args(arguments)


def row_lengths(keys_B, longest: int, mean: float, sigma: float):
    """The length of each row, from its key: log-normal with this mean (a share of the longest), before it is cut."""
    normal_B = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, LENGTH)))(keys_B)
    middle = np.log(mean * longest) - sigma**2 / 2
    return jnp.clip(jnp.round(jnp.exp(middle + sigma * normal_B)), 1, longest).astype(jnp.int32)


def make_work(flags: argparse.Namespace, mean: float) -> Work:
    """Random prompts, and lengths."""
    P, T = flags.prompts, flags.prompt_length
    tokens = np.random.default_rng(0).integers(OTHER + 1, SHAPES[flags.shape]["vocab_size"], (P, T))
    prompts = PromptBatch(jnp.asarray(tokens, jnp.int32), jnp.full(P, T, jnp.int32), jnp.arange(P, dtype=jnp.int32))
    key = jax.random.key(0)
    keys_B = row_keys(key, prompts.row_ids_P, flags.samples)
    full = np.full(P * flags.samples, flags.response_length)
    drawn = full if mean >= 1 else np.asarray(row_lengths(keys_B, flags.response_length, mean, flags.sigma))
    return Work(prompts, key, drawn)


def force_lengths(flags: argparse.Namespace, mean: float) -> None:
    """From here on rows sample the end of sequence at their length and nowhere else, in programs yet to be traced."""

    def forced(logits_BV, keys_B, index, params):
        token_B, logp_B = sample(logits_BV, keys_B, index, params)
        token_B = jnp.where(token_B == EOS, OTHER, token_B)
        if mean >= 1:
            return token_B, logp_B
        ends_B = row_lengths(keys_B, flags.response_length, mean, flags.sigma) <= index + 1
        return jnp.where(ends_B, EOS, token_B), logp_B

    generate.sample = slots.sample = forced
    slots.slot_programs.cache_clear()


class Spent(NamedTuple):
    """Seconds, and seconds of the processor's cores together (0 where another process computes)."""

    seconds: float
    cpu_seconds: float


def best_of(rounds: int, run) -> tuple[Spent, Any]:
    """(the best round's time after one that compiles, the last result)."""
    found, spent = run(), []
    for _ in range(rounds):
        start, processor = time.perf_counter(), time.process_time()
        found = jax.block_until_ready(run())
        spent.append(Spent(time.perf_counter() - start, time.process_time() - processor))
    return min(spent), found


def our_runs(flags: argparse.Namespace, spec: DecoderSpec, params, work: Work) -> dict[str, Any]:
    """name -> function that makes all rollouts and returns their tokens and lengths."""
    G, R = flags.samples, flags.response_length
    sampling, at_once = sampling_params(1.0, 1.0, 0, (EOS,)), max(1, flags.slots // G)
    traced = jax.jit(functools.partial(generate.generate_samples, spec=spec, samples=G, max_length=R))
    refill = make_programs(spec, G, R, 128, slots=flags.slots)

    def batches():
        starts = range(0, flags.prompts, at_once)
        parts = [jax.tree.map(lambda x, start=start: x[start : start + at_once], work.prompts) for start in starts]
        found = [traced(params, part, work.key, sampling) for part in parts]
        return jax.tree.map(lambda *x: jnp.concatenate(x), *found)

    runs = {"batches": batches, "refill": lambda: refill.rollout(params, work.prompts, work.key, sampling)}
    return {name: run for name, run in runs.items() if name in flags.only.split(",")}


def computed(lengths_B: np.ndarray, slots: int) -> int:
    """Tokens that the slots of a refilled rollout compute, those of free slots and ended rows included."""
    sizes, queue = slot_sizes(slots, len(lengths_B)), Queue(np.array([len(lengths_B)]), 1, slots)
    left_B, total = lengths_B - 1, 0  # the first token comes with the prompt
    while queue.waiting or queue.running_D.any():
        while queue.waiting and (queue.admit() is not None or queue.stage() is not None):
            pass
        for size in sizes if not queue.waiting else ():
            if queue.running_D.max() <= size < queue.held_DS.shape[1]:
                queue.narrow(size)
        rows = queue.held_DS[0][queue.held_DS[0] >= 0]
        end = until(queue, sizes, int(lengths_B.max()))
        steps = int(np.sort(left_B[rows])[max(0, len(rows) - max(end.total, end.each) - 1)])
        total += steps * queue.held_DS.shape[1]
        left_B[rows] -= steps
        queue.end((left_B[queue.held_DS[0]] <= 0) & (queue.held_DS[0] >= 0))
    return total


def print_schedules(flags: argparse.Namespace, lengths_B: np.ndarray) -> None:
    """How many tokens are computed for each one that is kept, were a step as fast for every number of slots."""
    G, S = flags.samples, flags.slots
    longest = [lengths_B[start : start + S].max() for start in range(0, len(lengths_B), S)]
    found = {
        "batches until their longest row ends": S * sum(longest),
        "slots of whole groups, refilled": G * computed(lengths_B.reshape(-1, G).max(axis=1), max(1, S // G)),
        "slots of rows, refilled": computed(lengths_B, S),
    }
    for name, tokens in found.items():
        print(f"  {tokens / lengths_B.sum():.2f} tokens computed a token: {name}")


def transformers_time(flags: argparse.Namespace, folder: Path, work: Work) -> Spent:
    """transformers' generate, in batches of as many rows as there are slots, each until its longest row ends."""
    rows = np.repeat(np.asarray(work.prompts.tokens_PT), flags.samples, axis=0)
    given = {"model": str(folder), "prompts": rows.tolist(), "lengths": work.lengths_B.tolist(), "rows": flags.slots,
             "rounds": flags.rounds, "dtype": flags.dtype}  # fmt: skip
    script = Path(__file__).with_name("peers") / "transformers_rollout.py"
    done = subprocess.run([flags.transformers, script], input=json.dumps(given), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script.name} failed:\n{done.stderr[-2000:]}")
    return Spent(**json.loads(done.stdout.splitlines()[-1]))


def vllm_time(flags: argparse.Namespace, folder: Path, work: Work) -> Spent:
    """A vLLM server's completions, all rows asked at once; how many it decodes at a time is its own setting."""
    rows = np.repeat(np.asarray(work.prompts.tokens_PT), flags.samples, axis=0).tolist()

    def ask(row: int) -> int:
        body = {"model": str(folder), "prompt": rows[row], "max_tokens": int(work.lengths_B[row]), "temperature": 1.0,
                "ignore_eos": True}  # fmt: skip
        request = urllib.request.Request(
            f"{flags.vllm.rstrip('/')}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["usage"]["completion_tokens"]

    def run() -> None:
        with concurrent.futures.ThreadPoolExecutor(len(rows)) as pool:
            tokens = sum(pool.map(ask, range(len(rows))))
        assert tokens == work.lengths_B.sum(), f"the server gave {tokens} tokens, asked for {work.lengths_B.sum()}"

    return Spent(best_of(flags.rounds, run)[0].seconds, 0.0)


def print_differences(one: Rollout, other: Rollout) -> None:
    """Rows with other tokens, and the largest difference of log-probs up to the first of these: a draw that falls
    between two tokens within the rounding of their probabilities may give either."""
    same_BR = np.cumprod(one.tokens_BR == other.tokens_BR, axis=1).astype(bool)
    apart = np.abs(one.logp_BR - other.logp_BR)[same_BR].max()
    print(f"rows with other tokens with refill than without: {(~same_BR[:, -1]).sum()} of {len(same_BR)}; log-probs "
          f"before that differ by at most {apart:.1e}", flush=True)  # fmt: skip


def measure(flags: argparse.Namespace, spec: DecoderSpec, params, folder: Path, mean: float) -> list[dict[str, Any]]:
    """A row of the table for each engine."""
    work, found, rollouts = make_work(flags, mean), {}, {}
    force_lengths(flags, mean)
    for name, run in our_runs(flags, spec, params, work).items():
        found[name], rollout = best_of(flags.rounds, run)
        assert np.array_equal(rollout.lengths_B, work.lengths_B), "rows end where they are meant to"
        rollouts[name] = jax.device_get(rollout)
    if len(rollouts) == 2:
        print_differences(*rollouts.values())
    if flags.transformers:
        found["transformers"] = transformers_time(flags, folder, work)
    if flags.vllm:
        found["vllm"] = vllm_time(flags, folder, work)
    tokens = int(work.lengths_B.sum())
    share = float(work.lengths_B.mean() / flags.response_length)
    return [
        {"mean": share, "engine": name, "tokens": tokens, "tokens_per_second": tokens / spent.seconds}
        | spent._asdict() for name, spent in found.items()
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    flags = parse(arguments)
    shape = SHAPES[flags.shape] | ({"layers": flags.layers} if flags.layers else {})
    spec = dataclasses.replace(DecoderSpec(**shape, tied_embeddings=True, qk_norm=False), dtype=flags.dtype)
    params = None if flags.schedules else jax.jit(lambda: init_decoder(jax.random.key(0), spec))()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(flags.folder or temporary)
        if flags.transformers or flags.folder:
            positions = {"max_position_embeddings": flags.prompt_length + flags.response_length}
            export_policy(Policy(spec, params, MissingTokenizer("none"), "", positions), str(folder), flags.dtype)
        rows: list[dict[str, Any]] = []
        if flags.write_only:
            return
        print(f"{flags.shape}, {flags.dtype}, {flags.prompts} x {flags.samples} rows, {flags.slots} at a time, "
              f"{flags.prompt_length} + {flags.response_length} tokens")  # fmt: skip
        for mean in flags.means:
            if flags.schedules:
                lengths_B = make_work(flags, mean).lengths_B
                print(f"mean {lengths_B.mean() / flags.response_length:.2f} of the longest")
                print_schedules(flags, lengths_B)
                continue
            for row in measure(flags, spec, params, folder, mean):
                rows.append(row)
                print(f"mean {row['mean']:.2f} of the longest  {row['engine']:>12}  "
                      f"{row['tokens_per_second']:8.1f} tokens a second  {row['seconds']:7.2f} s  "
                      f"{row['cpu_seconds']:7.2f} CPU-seconds", flush=True)  # fmt: skip
    if flags.json:
        Path(flags.json).write_text(json.dumps({"flags": vars(flags), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
