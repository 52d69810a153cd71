"""Settings of supervised training, preference pairs, the encoder and adapters; `config.tree` holds the whole tree."""

from dataclasses import dataclass
from typing import Literal

from pbrl_jax.config.fields import identity, operational


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning, `pbrl sft`."""

    source: Literal["pivot", "translated", "samples", "file"] = identity("pivot")
    """pivot: English questions and references (of the quickstart: its own mixture). translated: every language's
    questions with the English reference translated into it. samples: the policy's own responses, the best of each
    group of algo.num_generations, where its reward reaches min_reward. file: what `path` holds."""
    path: str = operational("")
    """source file: JSON lines {"language", "question", "response"}. samples: scored responses as `pbrl sft` and
    `pbrl dpo` write them (scored.jsonl); empty: sample them."""
    translator: str = identity("")
    """source translated: an M2M100 or NLLB model, or a policy: folder, hub id or gs://..."""
    min_reward: float = identity(0.5)
    """source samples: least reward of a response that is trained on."""  # ASSUMED
    prompts: int = identity(512, at_least=1)
    """source samples: prompts that are answered."""
    packed: bool = operational(False)
    """Several rows per stream of tokens, so that padding costs nothing; loss and gradient are the same."""
    steps: int = identity(300, at_least=1)
    """Optimizer steps of `pbrl sft`."""
    batch_size: int = identity(64, at_least=1)
    """Rows per step."""
    microbatch_size: int = operational(0, at_least=0)
    """Rows (packed: streams) whose gradients are computed at a time, over all devices; 0: all. Sums are exact."""
    optimizer: Literal["adamw", "muon"] = identity("adamw")
    """adamw or muon, as in `optim`."""
    learning_rate: float = identity(2e-3, at_least=0, at_most=1)
    """Peak learning rate, cosine to zero."""
    warmup_steps: int = identity(20, at_least=0)
    """Steps of linear warm-up."""
    english_rows: int = identity(8000, at_least=1)
    """Quickstart task: English rows of the start policy's text."""
    warm_rows_per_language: int = identity(40, at_least=1)
    """Quickstart task: rows of each other language that the start policy sees."""


@dataclass(frozen=True)
class DpoConfig:
    """Learning from ranked pairs, `pbrl dpo`."""

    path: str = operational("")
    """Pairs of preference (prompt, chosen, rejected: docs/data.md), or scored responses to rank, as `pbrl dpo` writes
    them; empty: sample them from the start policy."""
    steps: int = identity(200, at_least=1)
    """Optimizer steps of `pbrl dpo`."""
    batch_size: int = identity(32, at_least=1)
    """Pairs per step."""
    microbatch_size: int = operational(0, at_least=0)
    """Pairs whose gradients are computed at a time, over all devices; 0: all. Sums are exact."""
    learning_rate: float = identity(5e-7, at_least=0, at_most=1)
    """Peak learning rate, cosine to zero."""  # ASSUMED: usual for DPO; the paper does not state it
    warmup_steps: int = identity(10, at_least=0)
    """Steps of linear warm-up."""
    beta: float = identity(0.1, above=0)
    """Weight of the implicit KL to the start policy."""  # ASSUMED: that of the DPO paper
    loss_type: str = identity("sigmoid")
    """Loss of a pair; sigmoid is DPO. The formulas stand at `algos.preference.preference_loss`."""
    label_smoothing: float = identity(0.0, at_least=0, below=0.5, only_with=("loss_type", "sigmoid", "robust"))
    """Share of pairs that are taken to be the wrong way round (loss_type sigmoid, robust)."""
    pairs: Literal["all", "best_worst"] = identity("all")
    """Which pairs a group gives: all (every two responses whose rewards differ by min_margin; MAPO) or best_worst."""
    min_margin: float = identity(0.05, at_least=0)
    """Least difference of rewards between a chosen and a rejected response."""  # ASSUMED
    prompts: int = identity(512, at_least=1)
    """Prompts whose responses are sampled and ranked, algo.num_generations of each."""


@dataclass(frozen=True)
class ContrastiveConfig:
    """Training of the encoder, `pbrl encoder`."""

    steps: int = identity(200, at_least=1)
    """Optimizer steps of `pbrl encoder`."""
    batch_size: int = identity(96, at_least=2)
    """Pairs per step; every other row of the batch is a negative."""
    microbatch_size: int = operational(0, at_least=0)
    """Pairs that are encoded at a time, over all devices; 0: all. Every row of the batch stays a negative: vectors are
    made first, and then the gradient of each microbatch from that of its vectors."""
    learning_rate: float = identity(1e-3, at_least=0, at_most=1)
    """Peak learning rate, cosine to zero."""
    temperature: float = identity(0.05, at_least=1e-06)
    """Temperature of InfoNCE."""
    hard_negatives: int = identity(1, at_least=0)
    """Number-changed copies of each target that join the negatives; 0 is off."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters in place of the weights."""

    rank: int = identity(0, at_least=0)
    """Rank of the adapters that are trained in place of the weights, by every algorithm; 0: the weights are trained."""
    alpha: float = identity(32.0, at_least=0, only_with=("rank",))
    """Adapters are scaled by alpha / rank."""  # ASSUMED: not stated; twice a rank of 16, as is usual
    targets: tuple[str, ...] = identity(("query", "key", "value", "out", "gate", "up", "down"), only_with=("rank",))
    """Projections that get adapters."""
    quantization: Literal["none", "int8", "int4", "nf4"] = identity("none")
    """Type that the frozen kernels of all projections are held in (QLoRA): none, int8, int4 or nf4; needs qwix."""
    tile_size: int = identity(64, at_least=1, only_with=("quantization",))
    """Inputs of a kernel that share a scale where it is quantised."""
