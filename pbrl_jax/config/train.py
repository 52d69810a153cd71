"""Settings of the training run: batches, cadence, memory; `config.tree` holds the whole tree."""

from dataclasses import dataclass
from typing import Literal

from pbrl_jax.config.fields import identity, operational


@dataclass(frozen=True)
class TrainConfig:
    """Batches, cadence and memory of the training."""

    max_steps: int = operational(100, at_least=1)
    """Stop after this many optimizer steps."""
    prompts_per_step: int = identity(32, at_least=1)
    """Prompts of a rollout batch, P, over all devices."""
    microbatch_prompts: int = operational(0, at_least=0)
    """Prompt groups whose gradients are computed at a time; 0: all. Sums are exact."""
    microbatch_samples: int = operational(0, at_least=0)
    """Below a group: samples of a group whose gradients are computed at a time, the prompt anew for each part;
    microbatch_prompts then counts such parts. 0: whole groups, whose prompt is computed once."""
    logprob_chunk: int = operational(0, at_least=0)
    """Response positions, over all rows of a microbatch, in units of which logits are made; 0: 1024 on each device,
    fewer where their float32 logits would take more than half a GiB there."""
    fused: bool = identity(False)
    """Rollout, reward and update as one compiled program; needs a shared tokenizer."""
    offload: tuple[str, ...] = operational(())
    """What lies in the host's memory between its uses, where the platform has such a memory: optimizer (its moments),
    reference (the start policy of the KL term; it is then read before the gradient, microbatch by microbatch)."""
    frozen_dtype: Literal["compute", "float32"] = identity("compute")
    """Type that the reference's matrices, and those beside adapters, are held in where lora.quantization does not say:
    compute (that of policy.dtype, which every forward pass makes of them anyway; merged adapters are added to it), or
    float32. What is trained is float32 in any case."""
    packed: bool = operational(True)
    """Update on packed responses where that saves work: cost follows the tokens produced."""
    save_steps: int = operational(50, at_least=1)
    """Checkpoint every so many steps; the last step is always saved."""
    save_total_limit: int = operational(3, at_least=1)
    """Checkpoints kept."""
    eval_steps: int = operational(0, at_least=0)
    """Evaluate every so many steps; 0: only at the end."""
    eval_on_start: bool = operational(True)
    """With eval_steps, evaluate before the first step too: what the report calls before."""
    logging_steps: int = operational(1, at_least=1)
    """Every so many steps a row of the log is written: the mean of each metric over these steps."""
    seed: int = identity(0, at_least=0, at_most=2**31 - 1)
    """Seed of everything."""
