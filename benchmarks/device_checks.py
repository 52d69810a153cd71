"""Checks to run once on a new kind of device, a GPU above all: does it compute what a CPU computes, and twice the same?

    python benchmarks/device_checks.py
    XLA_FLAGS=--xla_gpu_deterministic_ops=true python benchmarks/device_checks.py

1. kernels: every attention kernel that this backend has, in bfloat16: values and gradients against `xla` attention in
   float32 on the CPU, as the largest difference over the largest value.
2. update: two GRPO updates of a small model in float32, on the device and on the CPU: gradient norms and entropies.
3. repeat: the same updates, compiled and run again: are the parameters equal bit by bit? On a GPU they need not be, and
   a resumed run is then not bit-equal; with the flag above they are to be.

Exits with 1 where a difference is above its bound, or where the repetition differs although the flag is set or the
device is no GPU.
"""

import argparse
import functools
import os
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")

#: bfloat16 keeps 8 bits: sums of rounded products are a few hundredths off at most.
KERNEL_BOUND, NORM_BOUND = 3e-2, 1e-3


class Check(NamedTuple):
    name: str
    found: float
    bound: float

    @property
    def holds(self) -> bool:
        return self.found <= self.bound


def difference(found, expected) -> float:
    """The largest difference of the leaves, over each leaf's largest value."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    found_expected = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)) for a, b in found_expected)


def attention_kernels() -> dict:
    """name -> kernel(query, key, value, valid), those that this backend has."""
    from pbrl_jax.models.attention import KERNELS, Visibility
    from pbrl_jax.models.fused_attention import FUSED

    def portable(name, query, key, value, valid):
        places = jnp.broadcast_to(jnp.arange(query.shape[1])[None], valid.shape)
        return KERNELS[name](query, key, value, Visibility(valid, places, places))[0]

    fused = {"gpu": ["cudnn"], "tpu": ["splash"]}.get(jax.default_backend(), [])
    found = {name: functools.partial(portable, name) for name in ("xla", "chunked")}
    return found | {name: functools.partial(FUSED[name], window=None) for name in fused}


def kernel_checks(rows: int, length: int) -> list[Check]:
    rng = np.random.default_rng(0)
    shapes = ((rows, length, 8, 64), (rows, length, 2, 64), (rows, length, 2, 64))
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    valid = np.arange(length)[None] < rng.integers(length // 2, length + 1, rows)[:, None]
    weights = rng.normal(size=shapes[0]).astype(np.float32)

    def values_and_gradients(kernel, dtype, device):
        def total(query, key, value):
            out = jnp.where(valid[..., None, None], kernel(query, key, value, jnp.asarray(valid)), 0)
            return (weights * out.astype(jnp.float32)).sum(), out

        placed = [jax.device_put(jnp.asarray(x, dtype), device) for x in arrays]
        with jax.default_device(device):
            return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*placed)

    kernels = attention_kernels()
    expected = values_and_gradients(kernels["xla"], jnp.float32, jax.devices("cpu")[0])
    return [
        Check(f"kernel {name}, bfloat16", difference(values_and_gradients(kernel, jnp.bfloat16, jax.devices()[0]),
                                                    expected), KERNEL_BOUND)
        for name, kernel in kernels.items()
    ]  # fmt: skip


def updated(device, prompts: int) -> tuple:
    """(parameters after two updates of a random policy on random rollouts, gradient norm and entropy of each)."""
    from pbrl_jax import Config, make_update, with_values
    from pbrl_jax.core.records import PromptBatch, Rollout, TrainBatch
    from pbrl_jax.models.decoder import init_decoder
    from pbrl_jax.models.specs import DecoderSpec
    from pbrl_jax.train.programs import run_optimizer
    from pbrl_jax.train.state import new_state

    G, T, R, vocab = 4, 32, 32, 512
    config = with_values(
        Config(), rollout={"max_prompt_length": T, "max_completion_length": R}, mesh={"data": 1},
        algo={"num_generations": G, "beta": 0.04}, train={"prompts_per_step": prompts, "packed": False},
        optim={"learning_rate": 1e-3},
    )  # fmt: skip
    spec = DecoderSpec(vocab_size=vocab, width=128, layers=2, heads=4, kv_heads=2, head_dim=32, ffn=384, qk_norm=True)
    rng, B = np.random.default_rng(1), prompts * G
    tokens = PromptBatch(rng.integers(4, vocab, (prompts, T)), rng.integers(T // 2, T + 1, prompts), np.arange(prompts))
    rollout = Rollout(rng.integers(4, vocab, (B, R)), rng.integers(1, R + 1, B), np.full((B, R), -6.0, np.float32),
                      np.zeros(B, bool))  # fmt: skip
    batch = TrainBatch(tokens, rollout, rng.normal(size=B).astype(np.float32), np.ones(B, bool), None)
    batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.int32 if x.dtype == np.int64 else None), batch)
    with jax.default_device(device):
        params = jax.device_put(init_decoder(jax.random.key(0), spec), device)
        optimizer, update = run_optimizer(config).policy, make_update(spec, config)
        state = new_state(jax.tree.map(jnp.copy, params), optimizer)
        found = []
        for _ in range(2):
            state, metrics = update(state, params, jax.device_put(batch, device))
            found += [float(metrics[name]) for name in ("grad_norm", "entropy")]
        return jax.device_get(state.params), found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a device computes, against the CPU and against itself.")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--prompts", type=int, default=4)
    flags = parser.parse_args(arguments)
    print(f"{jax.devices()[0].device_kind} ({jax.default_backend()}), jax {jax.__version__}")
    checks = kernel_checks(flags.rows, flags.length)
    _, expected = updated(jax.devices("cpu")[0], flags.prompts)
    params, found = updated(jax.devices()[0], flags.prompts)
    checks.append(Check("gradient norms and entropy, against the CPU", difference(found, expected), NORM_BOUND))
    jax.clear_caches()
    again = updated(jax.devices()[0], flags.prompts)[0]
    promised = jax.default_backend() != "gpu" or "deterministic_ops=true" in os.environ.get("XLA_FLAGS", "")
    same = all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True))
    for check in checks:
        print(f"{'holds' if check.holds else 'FAILS'}  {check.name}: {check.found:.2e}, at most {check.bound:.0e}")
    print(f"{'holds' if same or not promised else 'FAILS'}  repeated: {'bit-equal' if same else 'not bit-equal'}")
    return 0 if all(check.holds for check in checks) and (same or not promised) else 1


if __name__ == "__main__":
    sys.exit(main())
