"""What a step costs on 1, 2, 4 and 8 devices: flops and bytes of a device, by the compiled programs, and time.

    python benchmarks/scaling.py --json scaling.json
    python benchmarks/scaling.py --axis data --no-run

The step is the one that training runs: rollout, the reward's encoder, update; and those of `pbrl sft`, `pbrl dpo` and
`pbrl encoder`. For each number of devices the programs are compiled as `pbrl plan` compiles them, and counted from the
optimized HLO, every loop as often as it runs: what a device computes must fall as one over the devices. Rollout and
update then run: virtual devices share this machine's processor, so the processor's seconds for all devices together
stay what they are, but for what sharing costs.
"""

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

COUNTS = (1, 2, 4, 8)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Cost of a step against the number of virtual devices.")
    parser.add_argument("--devices", type=int, nargs="+", default=list(COUNTS), help="numbers of devices")
    parser.add_argument("--axis", choices=("data", "fsdp", "tensor"), default="fsdp", help="mesh axis that they make")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--prompt-len", type=int, default=32)
    parser.add_argument("--response-len", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed; the best one counts")
    parser.add_argument("--no-run", action="store_true", help="compile and count only")
    parser.add_argument("--json", help="file for the results")
    return parser.parse_args(arguments)


def virtual_devices(count: int) -> None:
    """So many virtual CPU devices for this process; before JAX is imported."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    flag = "--xla_force_host_platform_device_count"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={count}".strip()


def run_config(flags: argparse.Namespace, count: int):
    """The step's settings on so many devices."""
    from pbrl_jax import Config, with_values

    return with_values(
        Config(), encoder={"preset": "small", "max_length": flags.response_len},
        rollout={"max_prompt_length": flags.prompt_len, "max_completion_length": flags.response_len},
        algo={"num_generations": flags.group, "beta": 0.04}, data={"vocab_size": flags.vocab},
        train={"prompts_per_step": flags.prompts, "logprob_chunk": 512, "packed": False}, log={"entropy": False},
        sft={"batch_size": flags.prompts * flags.group},
        dpo={"batch_size": flags.prompts, "path": "scored.jsonl"}, contrastive={"batch_size": flags.prompts},
        policy={"remat": "full"}, mesh={"data": 1, "fsdp": 1, "tensor": 1} | {flags.axis: count},
    )  # fmt: skip


def run_models(flags: argparse.Namespace, config):
    """A Qwen3 of these sizes and the encoder; every axis divides by eight."""
    from pbrl_jax.models.specs import DecoderSpec
    from pbrl_jax.plan.shapes import Models, run_encoder_spec

    spec = DecoderSpec(
        vocab_size=flags.vocab, width=flags.width, layers=flags.layers, heads=8, kv_heads=8,
        head_dim=flags.width // 8, ffn=4 * flags.width, qk_norm=True, remat=config.policy.remat,
    )  # fmt: skip
    return Models(spec, run_encoder_spec(config, flags.vocab))


def compiled_costs(config, models, mesh) -> dict[str, dict[str, float]]:
    """What each program costs on one device."""
    from pbrl_jax.plan.analytic import estimate_step
    from pbrl_jax.plan.programs import compile_step
    from pbrl_jax.plan.roofline import mesh_sizes
    from pbrl_jax.plan.stages import compile_stage

    by_hand = estimate_step(config, models, mesh_sizes(config, mesh.size))
    needs = compile_step(config, models, mesh, by_hand, lambda text: None)
    for verb in ("sft", "dpo", "encoder"):
        needs[verb] = compile_stage(config, models, mesh, verb, lambda text: None)["train"]
    return {
        name: {
            "flops": need.cost.flops, "bytes": need.cost.bytes, "sent": need.cost.collective_bytes,
            "memory": need.hbm_bytes,
        }
        for name, need in needs.items()
    }  # fmt: skip


def run_times(config, models, mesh, steps: int) -> dict[str, dict[str, float]]:
    """Seconds, and seconds of the processor's cores together, of the best rollout and the best update."""
    import jax

    from pbrl_jax.core.records import PromptBatch, TrainBatch
    from pbrl_jax.mesh.sharding import batch_sharding, tree_shardings
    from pbrl_jax.models.decoder import decoder_axes, init_decoder
    from pbrl_jax.plan.shapes import sharded_batch
    from pbrl_jax.rollout.refill import make_generate
    from pbrl_jax.rollout.sampling import sampling_params
    from pbrl_jax.train.optimizer import make_optimizer
    from pbrl_jax.train.programs import make_update
    from pbrl_jax.train.state import place_state

    spec, R = models.policy, config.rollout.max_completion_length
    axes, rows = decoder_axes(spec), batch_sharding(mesh)
    shapes: TrainBatch = sharded_batch(config, mesh)
    lengths = jax.numpy.full(shapes.prompts.lengths_P.shape, config.rollout.max_prompt_length)
    tokens = jax.random.randint(jax.random.key(1), shapes.prompts.tokens_PT.shape, 2, spec.vocab_size)
    prompts = jax.device_put(PromptBatch(tokens, lengths, jax.numpy.arange(lengths.size)), rows)
    best: dict[str, dict[str, float]] = {}

    def timed(name: str, program, *inputs) -> Any:
        start, processor = time.perf_counter(), time.process_time()
        found = jax.block_until_ready(program(*inputs))
        spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - processor}
        best[name] = {key: min(value, best.get(name, spent)[key]) for key, value in spent.items()}
        return found

    params = init_decoder(jax.random.key(0), spec)
    with jax.set_mesh(mesh):
        reference = jax.device_put(params, tree_shardings(params, axes, mesh))
        state = place_state(params, make_optimizer(config.optim), axes, mesh)
        generate = make_generate(spec, config.algo.num_generations, R, config.rollout.segment_length, "whole")
        update, sampling = make_update(spec, config), sampling_params(1.0, 1.0, 0, (0,))
        reward = jax.random.uniform(jax.random.key(2), shapes.reward_B.shape)
        for number in range(steps + 1):
            best = {} if number == 1 else best  # the first step compiles

            rollout = timed("generate", generate, state.params, prompts, jax.random.key(number), sampling)
            batch = TrainBatch(prompts, rollout, *jax.device_put((reward, reward > -1), rows))
            state, _ = timed("update", update, state, reference, batch)
    return best


def measure(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """A record for each number of devices."""
    import jax

    from pbrl_jax.mesh.sharding import make_mesh

    records = []
    for count in flags.devices:
        config = run_config(flags, count)
        mesh = make_mesh(config.mesh, jax.devices()[:count])
        models = run_models(flags, config)
        programs = compiled_costs(config, models, mesh)
        if not flags.no_run:
            for name, spent in run_times(config, models, mesh, flags.steps).items():
                programs[name] |= spent
        records.append({"devices": count, "mesh": dataclasses.asdict(config.mesh), "programs": programs})
        print(f"{count} device(s): done", flush=True)
    return records


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: a line for each program and number of devices."""
    lines = [
        "| program | devices | MFLOP a device | x devices / those of one | MB moved | MB sent | MB held | s | CPU-s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, alone in records[0]["programs"].items():
        for record in records:
            found = record["programs"][name]
            share = found["flops"] * record["devices"] / (alone["flops"] * records[0]["devices"])
            times = [f"{found[key]:.2f}" if key in found else "-" for key in ("seconds", "cpu_seconds")]
            sizes = [f"{found[key] / 1e6:.1f}" for key in ("bytes", "sent", "memory")]
            cells = [name, record["devices"], f"{found['flops'] / 1e6:.0f}", f"{share:.3f}", *sizes, *times]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    flags = parse(arguments)
    virtual_devices(max(flags.devices))
    records = measure(flags)
    print(table(records))
    if flags.json:
        Path(flags.json).write_text(json.dumps({"flags": vars(flags), "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
