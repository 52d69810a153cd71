"""Seconds per GRPO step of pbrl_jax on the shared workload.

    python benchmarks/grpo_step.py --steps 8 --json ours.json

The step is the one that training runs: rollout.generate samples, the host computes the reward from the tokens,
train.packed makes advantages, reference log-probs, loss, gradient and AdamW. Since the reference pass lies inside the
gradient's program, the column `reference` is measured apart, after the last step, on the same batches: it says what
share of `update` it is, and belongs neither to `total` nor to `cpu_seconds`. The first step compiles what it needs; the
programs of other lengths are compiled beside it, and waited for before the steps that are measured.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import functools
import gc
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from peers import bench_workload as workload
from peers.bench_protocol import WARMUP_STEPS, StepClock, cpu_name, finish, parse_flags, workload_dict

from pbrl_jax import AlgoConfig, Config, LogConfig, OptimConfig, RolloutConfig, TrainConfig
from pbrl_jax.core.batching import pad_prompts
from pbrl_jax.core.records import PromptBatch, Rollout, TrainBatch, TrainState
from pbrl_jax.core.version import __version__
from pbrl_jax.mesh.ahead import Background, background_compiles
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.rollout.refill import make_generate
from pbrl_jax.rollout.sampling import sampling_params, step_key
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.packed import make_policy_update, make_rows, make_targets
from pbrl_jax.train.programs import reference_logp
from pbrl_jax.train.state import new_state
from pbrl_jax.train.trained import Frozen


def add_own_flags(parser) -> None:
    """Settings of this library that change no result."""
    default = TrainConfig()
    parser.add_argument(
        "--logprob-chunk",
        type=int,
        default=default.logprob_chunk,
        help="train.logprob_chunk: response positions whose logits exist at a time",
    )
    parser.add_argument("--remat", default="dots", choices=("none", "full", "dots"), help="policy.remat")
    parser.add_argument("--attention", default="auto", help="policy.attention")
    parser.add_argument(
        "--microbatch-prompts",
        type=int,
        default=default.microbatch_prompts,
        help="train.microbatch_prompts: prompt groups whose gradient is made at a time; 0: all",
    )
    parser.add_argument("--no-packed", action="store_true", help="update one row per response, whatever its length")
    parser.add_argument("--entropy", action="store_true", help="also log the policy's entropy, as training does")


def policy_spec(flags) -> DecoderSpec:
    """The workload's Qwen3."""
    return DecoderSpec(
        vocab_size=flags.vocab,
        width=flags.d,
        layers=flags.layers,
        heads=flags.heads,
        kv_heads=flags.kv_heads,
        head_dim=flags.head_dim,
        ffn=flags.ffn,
        rope_theta=workload.ROPE_THETA,
        norm_eps=workload.NORM_EPS,
        qk_norm=True,
        tied_embeddings=True,
        remat=flags.remat,
        attention=flags.attention,
    )


def policy_params(flags) -> dict:
    """The workload's weights in the decoder's tree: layers stacked, matrices [in, out]."""
    weights = workload.random_qwen3(flags)

    def stacked(name: str, *shape: int) -> jax.Array:
        layers = [weights[f"model.layers.{i}.{name}.weight"] for i in range(flags.layers)]
        return jnp.asarray(np.stack([layer.T.reshape(shape or layer.shape) for layer in layers]))

    def linear(name: str, *shape: int) -> dict:
        return {"kernel": stacked(name, *shape)}

    def norm(name: str) -> dict:
        return {"scale": stacked(name)}

    d, ffn, heads, kv_heads, width = flags.d, flags.ffn, flags.heads, flags.kv_heads, flags.head_dim
    return {
        "embed": jnp.asarray(weights["model.embed_tokens.weight"]),
        "final_norm": {"scale": jnp.asarray(weights["model.norm.weight"])},
        "layers": {
            "attention_norm": norm("input_layernorm"),
            "mlp_norm": norm("post_attention_layernorm"),
            "query_norm": norm("self_attn.q_norm"),
            "key_norm": norm("self_attn.k_norm"),
            "query": linear("self_attn.q_proj", d, heads, width),
            "key": linear("self_attn.k_proj", d, kv_heads, width),
            "value": linear("self_attn.v_proj", d, kv_heads, width),
            "out": linear("self_attn.o_proj", heads, width, d),
            "mlp": {
                "gate": linear("mlp.gate_proj", d, ffn),
                "up": linear("mlp.up_proj", d, ffn),
                "down": linear("mlp.down_proj", ffn, d),
            },
        },
    }


def run_config(flags) -> Config:
    """The workload as a training configuration."""
    return Config(
        algo=AlgoConfig(num_generations=flags.group, beta=flags.beta),
        rollout=RolloutConfig(max_prompt_length=flags.prompt_len, max_completion_length=flags.response_len),
        optim=OptimConfig(learning_rate=workload.LEARNING_RATE, weight_decay=0.0, max_grad_norm=0.0),
        train=TrainConfig(
            prompts_per_step=flags.prompts,
            logprob_chunk=flags.logprob_chunk,
            microbatch_prompts=flags.microbatch_prompts,
            packed=not flags.no_packed,
        ),
        log=LogConfig(entropy=flags.entropy),
    )


class Programs(NamedTuple):
    """What is compiled, and the start of the run."""

    generate: Callable
    targets: Callable
    update: Callable
    reference: Callable
    frozen: Frozen
    state: TrainState
    config: Config


def make_programs(flags) -> Programs:
    spec, config, params = policy_spec(flags), run_config(flags), policy_params(flags)
    state = jax.jit(lambda tree: new_state(jax.tree.map(jnp.copy, tree), make_optimizer(config.optim)))(params)
    # Placed as an update leaves it: the second rollout finds the programs of the first.
    state, params = jax.device_put((state, params), jax.devices()[0])
    return Programs(
        make_generate(spec, flags.group, flags.response_len, config.rollout.segment_length),
        make_targets(spec, config),
        make_policy_update(spec, config),
        make_rows(spec, config, reference_logp),
        Frozen(params if flags.beta > 0 else None),
        state,
        config,
    )


def device_prompts(flags, ids: list[list[int]], step: int) -> PromptBatch:
    rows = range(step * flags.prompts, (step + 1) * flags.prompts)
    return jax.device_put(pad_prompts(ids, flags.prompt_len, rows, workload.PAD), jax.devices()[0])


def even_share_rewards(rollout: Rollout) -> np.ndarray:
    """The shared reward of every response, on the host."""
    tokens, lengths = np.asarray(rollout.tokens_BR), np.asarray(rollout.lengths_B)
    rows = zip(tokens.tolist(), lengths.tolist(), strict=True)
    return np.array([workload.even_share(row[:length]) for row, length in rows], np.float32)


def run_steps(flags, programs: Programs, clock: StepClock, background: Background):
    """All steps under the clock; returns the last state and every step's batch."""
    prompts = workload.prompt_ids(flags)
    sampling = sampling_params(1.0, 1.0, 0, (workload.EOS,))
    state, done = programs.state, []

    def rollout_of(step: int):
        batch = device_prompts(flags, prompts[step], step)
        rollout = programs.generate(state.params, batch, step_key(flags.seed, step), sampling)
        return batch, rollout, jax.device_get(rollout)

    def updated(batch: TrainBatch):
        targets = programs.targets(state, programs.frozen, batch)
        return jax.block_until_ready(programs.update(state, programs.frozen, batch, targets))[0]

    for step in range(flags.steps):
        prompt_batch, rollout, host = clock.timed("rollout", rollout_of, step)
        rewards = clock.timed("reward", even_share_rewards, host)
        clock.add_response_tokens(host.lengths_B.sum())
        batch = TrainBatch(prompt_batch, rollout, *jax.device_put((rewards, np.ones(len(rewards), bool))))
        state = clock.timed("update", updated, batch)
        clock.end_step()
        done.append(batch)
        background.begin_rest()
        if step < WARMUP_STEPS - 1:
            background.join()
    return state, done


def time_reference(programs: Programs, state: TrainState, batches: list[TrainBatch], clock: StepClock) -> None:
    """Adds the reference pass of the measured steps' batches to their records."""
    if programs.frozen.reference is None:
        return
    run = functools.partial(programs.reference, state, programs.frozen)
    for batch in batches:  # compile first: the clock shall see none of it
        jax.block_until_ready(run(batch))
    for record, batch in zip(clock.steps, batches, strict=True):
        apart = StepClock()
        apart.start()
        apart.timed("reference", lambda batch=batch: jax.block_until_ready(run(batch)))
        apart.end_step()
        record.update({name: apart.steps[0][name] for name in ("reference", cpu_name("reference"))})


def main(argv: list[str] | None = None) -> None:
    flags = parse_flags(__doc__.splitlines()[0], argv, add_own_flags)
    gc.freeze()  # as `pbrl` does after its imports
    clock = StepClock()
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: clock.add_compilation() if name.endswith("backend_compile_duration") else None
    )
    programs = make_programs(flags)
    clock.start()  # step 0 is the first step with all compilation
    with background_compiles() as background:
        state, batches = run_steps(flags, programs, clock, background)
    time_reference(programs, state, batches, clock)
    finish("pbrl_jax", __version__, workload_dict(flags), clock, True, flags.json)
    print("reference: the reference pass run alone; it is part of update and not added to total.")


if __name__ == "__main__":
    main()
