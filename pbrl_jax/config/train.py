"""Settings of the training run: batches, cadence, memory; `config.tree` holds the whole tree."""

from dataclasses import dataclass
from typing import Literal

from pbrl_jax.config.fields import identity, operational


@dataclass(frozen=True)
class TrainConfig:
    """Batches, cadence and memory."""

    max_steps: int = operational(100, at_least=1)
    """Stop after this many optimizer steps."""
    prompts_per_step: int = identity(32, at_least=1)
    """Prompts of a rollout batch, over all devices."""
    microbatch_prompts: int = operational(0, at_least=0)
    """Prompt groups whose gradients are computed at a time, at most: packed updates take fewer; 0: all. Sums are
    exact."""
    microbatch_samples: int = operational(0, at_least=0)
    """Split groups: samples of a group whose gradients are computed at a time. The prompt is recomputed for each part,
    and microbatch_prompts counts parts. 0: whole groups, whose prompt is computed once."""
    logprob_chunk: int = operational(0, at_least=0)
    """Response positions, over all rows of a microbatch, whose logits are computed at a time; 0: 1024 on each device,
    fewer if their float32 logits would take more than half a GiB there."""
    fused: bool = identity(False)
    """Compile rollout, reward and update as one program; policy and encoder must share a tokenizer."""
    rollout_ahead: int = identity(0, at_least=0, at_most=1)
    """1: sample each rollout one rollout early, with the parameters before the update, while the host scores the one
    before; algo.importance_sampling_mode corrects for it. 0: sample with the parameters that are updated."""
    offload: tuple[str, ...] = operational(())
    """Arrays kept in host memory between uses, on platforms with pinned host memory: optimizer (its moments), reference
    (of the KL term; its log-probs are then computed before the gradient, microbatch by microbatch)."""
    frozen_dtype: Literal["compute", "float32"] = identity("compute")
    """Type of the matrices of the reference and of the base of adapters, unless lora.quantization is set: compute (the
    type of policy.dtype, to which every forward pass casts them anyway; merged adapters are added in it) or float32.
    Trained parameters are always float32."""
    packed: bool = operational(True)
    """Pack responses for the update if that saves work, so that cost is proportional to the sampled tokens."""
    save_steps: int = operational(50, at_least=1)
    """Save a checkpoint every this many steps, and after the last step."""
    save_total_limit: int = operational(3, at_least=1)
    """Number of checkpoints to keep."""
    eval_steps: int = operational(0, at_least=0)
    """Evaluate every this many steps; 0: only at the end."""
    eval_on_start: bool = operational(True)
    """With eval_steps, also evaluate before the first step (`before` in the report)."""
    logging_steps: int = operational(1, at_least=1)
    """Write a row of the log every this many steps: the mean of each metric over these steps."""
    seed: int = identity(0, at_least=0, at_most=2**31 - 1)
    """Seed of all random numbers."""
