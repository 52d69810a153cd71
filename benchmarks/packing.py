"""Slots that an update computes for each token that was sampled, by the distribution of lengths.

    python benchmarks/packing.py
    python benchmarks/packing.py --prompts 16 --response-len 8192

Lengths are lognormal, cut at the longest, half of their variance between prompts. `cost` is the modelled cost of the
response slots (matrix products and attention of Llama-3.1-8B, prompts of 512 tokens), as a share of the unpacked
update's. Nothing is compiled. What a step takes, packed and not, is told by `grpo_step.py --mean-response N` with and
without `--no-packed`.
"""

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

from pbrl_jax import AlgoConfig, Config, RolloutConfig, TrainConfig
from pbrl_jax.models.packing import slot_cost
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.train.microbatches import packing_of, plan_microbatches

LLAMA_8B = DecoderSpec(
    vocab_size=128_256, width=4096, layers=32, heads=32, kv_heads=8, head_dim=128, ffn=14_336, rope_theta=5e5
)
#: (mean as a share of the longest, standard deviation of the logarithms)
SHARES = ((0.1, 0.6), (0.2, 0.6), (0.3, 0.6), (0.4, 0.5), (0.5, 0.5))


def lognormal_lengths(flags, mean: float, spread: float, rng: np.random.Generator) -> np.ndarray:
    """Lengths of the rows of every group, [P, G]."""
    prompt_P1 = rng.normal(0, spread * 0.7, (flags.prompts, 1))
    row_PG = rng.normal(0, spread * 0.7, (flags.prompts, flags.group))
    logs_PG = np.log(mean * flags.response_len) - spread**2 / 2 + prompt_P1 + row_PG
    return np.clip(np.exp(logs_PG), 1, flags.response_len).astype(int)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"prompts": 64, "group": 8, "response-len": 2048, "devices": 1, "batches": 200}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    flags = parser.parse_args()
    config = Config(
        algo=AlgoConfig(num_generations=flags.group),
        rollout=RolloutConfig(max_prompt_length=512, max_completion_length=flags.response_len),
        train=TrainConfig(prompts_per_step=flags.prompts),
    )
    packing, cost = packing_of(LLAMA_8B, config, flags.devices), slot_cost(LLAMA_8B, 512)
    if packing is None:
        raise SystemExit("Such a batch is not packed: it is too small, or the devices do not divide it.")
    shapes = ", ".join(f"{bucket.streams} x {bucket.length}" for bucket in packing.buckets)
    print(f"microbatches of {packing.size} groups; streams x length: {shapes}")
    print(f"{'mean':>6}{'slots/token':>13}{'most':>7}{'buckets':>9}{'slots':>7}{'cost':>7}   (of unpacked)")
    rng, unpacked = np.random.default_rng(0), packing.buckets[-1]
    for mean, spread in SHARES:
        ratios, slots, costs, used = [], [], [], []
        for _ in range(flags.batches):
            lengths_PG = lognormal_lengths(flags, mean, spread, rng)
            plan = plan_microbatches(lengths_PG, packing)
            slots.append(sum(len(part.groups) * part.bucket.slots for part in plan))
            costs.append(sum(len(part.groups) * cost.of(part.bucket) for part in plan))
            used.append(len({part.bucket for part in plan}))
            ratios.append(slots[-1] / lengths_PG.sum())
        of_all = np.mean(slots) / (flags.prompts * unpacked.slots)
        of_cost = np.mean(costs) / (flags.prompts * cost.of(unpacked))
        print(f"{mean:6.1f}{np.mean(ratios):13.2f}{max(ratios):7.2f}{np.mean(used):9.1f}{of_all:7.2f}{of_cost:7.2f}")


if __name__ == "__main__":
    main()
