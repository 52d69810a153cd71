"""Temporaries of the update against those of a plain one that makes logits of shape [B, T, V], side by side.

    python benchmarks/update_memory.py
    python benchmarks/update_memory.py --layers 4 --width 512 --json update_memory.json

Both are compiled for this machine and never run: the same model, batch, objective, KL and AdamW. The plain one passes
whole rows, prompt and response, through the model, makes the logits of all positions at once, for the policy and for
the reference, and takes the log-softmax.
"""

import argparse
import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Temporaries of the update against a plain [B, T, V] one.")
    parser.add_argument("--vocab", type=int, default=151_936, help="that of Qwen3")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--response-len", type=int, default=256)
    parser.add_argument("--logprob-chunk", type=int, default=128)
    parser.add_argument("--json", help="file for the results")
    return parser.parse_args(arguments)


def run_config(flags: argparse.Namespace):
    from pbrl_jax import Config, with_values

    return with_values(
        Config(), rollout={"max_prompt_length": flags.prompt_len, "max_completion_length": flags.response_len},
        algo={"num_generations": flags.group, "beta": 0.04}, log={"entropy": False}, mesh={"data": 1},
        train={"prompts_per_step": flags.prompts, "logprob_chunk": flags.logprob_chunk}, policy={"remat": "full"},
    )  # fmt: skip


def model_spec(flags: argparse.Namespace):
    from pbrl_jax.models.specs import DecoderSpec

    return DecoderSpec(
        vocab_size=flags.vocab, width=flags.width, layers=flags.layers, heads=4, kv_heads=2, head_dim=flags.width // 4,
        ffn=3 * flags.width, qk_norm=True, remat="full",
    )  # fmt: skip


def plain_logprobs(params, batch, spec, config):
    """Log-probs of the responses [B, R] through logits [B, T, V]."""
    import jax
    import jax.numpy as jnp

    from pbrl_jax.models.decoder import causal_logits

    G, R = config.algo.num_generations, config.rollout.max_completion_length
    prompts = jnp.repeat(batch.prompts.tokens_PT, G, axis=0)
    lengths = jnp.repeat(batch.prompts.lengths_P, G, axis=0)[:, None]
    T = prompts.shape[1]
    tokens = jnp.concatenate([prompts, batch.rollout.tokens_BR], axis=1)
    places = jnp.arange(T + R)[None]
    mask = jnp.where(places < T, places < lengths, places - T < batch.rollout.lengths_B[:, None])
    logp = jax.nn.log_softmax(causal_logits(params, spec, tokens, mask) / config.rollout.temperature, axis=-1)
    predicting = jnp.where(jnp.arange(R)[None] == 0, lengths - 1, T - 1 + jnp.arange(R)[None])
    rows = jnp.take_along_axis(logp, predicting[..., None], axis=1)
    return jnp.take_along_axis(rows, batch.rollout.tokens_BR[..., None], axis=-1)[..., 0]


def plain_update(state, reference, batch, *, spec, config):
    """The same step as `train.programs.update_step`, the plain way."""
    import jax

    from pbrl_jax.algos.grpo import policy_loss
    from pbrl_jax.train.programs import run_optimizer
    from pbrl_jax.train.update import estimate_advantages, loss_mask, optimizer_step

    mask = loss_mask(batch, config)
    advantages, _ = estimate_advantages(batch, mask, None, config)
    reference_logp = plain_logprobs(reference, batch, spec, config)

    def loss(params):
        total, count, _ = policy_loss(
            plain_logprobs(params, batch, spec, config), batch.rollout.logp_BR, advantages, mask, config=config.algo,
            ref_logp_BR=reference_logp, max_completion_length=config.rollout.max_completion_length,
        )  # fmt: skip
        return total / count

    return optimizer_step(state, jax.grad(loss)(state.params), run_optimizer(config))


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Bytes of temporaries of both, and their ratio."""
    import jax

    from pbrl_jax.mesh.sharding import make_mesh
    from pbrl_jax.plan.programs import compile_ahead
    from pbrl_jax.plan.shapes import sharded_batch, sharded_policy, sharded_state
    from pbrl_jax.train.programs import make_update

    config, spec = run_config(flags), model_spec(flags)
    mesh = make_mesh(dataclasses.replace(config.mesh, data=1), jax.devices()[:1])
    shapes = sharded_state(config, spec, mesh), sharded_policy(spec, mesh), sharded_batch(config, mesh)
    plain = jax.jit(functools.partial(plain_update, spec=spec, config=config), donate_argnums=0)
    ours = compile_ahead(mesh, make_update(spec, config), *shapes).memory.temporary
    theirs = compile_ahead(mesh, plain, *shapes).memory.temporary
    rows = flags.prompts * flags.group * (flags.prompt_len + flags.response_len)
    return {"ours": ours, "plain": theirs, "ratio": ours / theirs, "logits": 4.0 * rows * flags.vocab}


def main(arguments: list[str] | None = None) -> None:
    flags = parse(arguments)
    found = measure(flags)
    print(f"One [B, T, V] array of logits in float32: {found['logits'] / 1e9:.2f} GB")
    print("| update | temporaries GB |\n| --- | ---: |")
    print(f"| plain, logits [B, T, V] | {found['plain'] / 1e9:.2f} |\n| ours | {found['ours'] / 1e9:.2f} |")
    print(f"Ours is {found['ratio']:.1%} of the plain one.")
    if flags.json:
        Path(flags.json).write_text(json.dumps({"flags": vars(flags)} | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
