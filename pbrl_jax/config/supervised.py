"""Settings of SFT, DPO, encoder training and LoRA adapters; `config.tree` holds the whole tree."""

from dataclasses import dataclass
from typing import Literal

from pbrl_jax.config.fields import identity, operational

#: Verb -> the section of its steps and batches.
STAGES = {"sft": "sft", "dpo": "dpo", "encoder": "contrastive", "translator": "translator"}


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning, `pbrl sft`."""

    source: Literal["pivot", "translated", "samples", "file"] = identity("pivot")
    """pivot: English questions and references (for the quickstart source: its own mixture). translated: questions in
    every language with the translated English reference. samples: the policy's best response of each group of
    algo.num_generations, if its reward reaches min_reward. file: the rows of `path`."""
    path: str = operational("", only_with=("source", "file", "samples"))
    """source file: JSON lines {"language", "question", "response"}. samples: scored responses as `pbrl sft` and
    `pbrl dpo` write them (scored.jsonl); empty: sample them."""
    translator: str = identity("", only_with=("source", "translated"))
    """source translated: an M2M100 or NLLB model or a policy, as folder, hub id or gs://..."""
    min_reward: float = identity(0.5, only_with=("source", "samples"))
    """source samples: least reward of a training response."""  # ASSUMED
    prompts: int = identity(512, at_least=1, only_with=("source", "samples"))
    """source samples: number of prompts to answer."""
    packed: bool = operational(False)
    """Pack several rows into one sequence, so that padding costs nothing; loss and gradient are the same."""
    steps: int = identity(300, at_least=1)
    """Optimizer steps of `pbrl sft`."""
    batch_size: int = identity(64, at_least=1)
    """Rows per step."""
    microbatch_size: int = operational(0, at_least=0)
    """Rows (packed: sequences) whose gradients are computed at a time, over all devices; 0: all. Sums are exact."""
    optimizer: Literal["adamw", "muon"] = identity("adamw")
    """adamw or muon, as in section optim."""
    learning_rate: float = identity(2e-3, at_least=0, at_most=1)
    """Peak learning rate, cosine to zero."""
    warmup_steps: int = identity(20, at_least=0)
    """Steps of linear warm-up, at most half of `steps`."""
    english_rows: int = identity(8000, at_least=1)
    """Quickstart task: English rows of the training text."""
    warm_rows_per_language: int = identity(40, at_least=1)
    """Quickstart task: rows of each other language in the training text."""


@dataclass(frozen=True)
class DpoConfig:
    """Training on preference pairs, `pbrl dpo`."""

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
    """Steps of linear warm-up, at most half of `steps`."""
    beta: float = identity(0.1, above=0)
    """Weight of the implicit KL to the start policy."""  # ASSUMED: that of the DPO paper
    loss_type: str = identity("sigmoid")
    """Loss of a pair; sigmoid is DPO. See pbrl_jax.algos.preference.preference_loss for the formulas."""
    label_smoothing: float = identity(0.0, at_least=0, below=0.5, only_with=("loss_type", "sigmoid", "robust"))
    """Assumed share of pairs in the wrong order (loss_type sigmoid, robust)."""
    pairs: Literal["all", "best_worst"] = identity("all")
    """Pairs of a group: all (every two responses whose rewards differ by min_margin; MAPO) or best_worst."""
    min_margin: float = identity(0.05, at_least=0)
    """Least difference of rewards between a chosen and a rejected response."""  # ASSUMED
    prompts: int = identity(512, at_least=1)
    """Number of prompts; algo.num_generations responses to each are sampled and ranked."""


@dataclass(frozen=True)
class ContrastiveConfig:
    """Training of the encoder, `pbrl encoder`."""

    steps: int = identity(200, at_least=1)
    """Optimizer steps of `pbrl encoder`."""
    batch_size: int = identity(96, at_least=2)
    """Pairs per step; every other row of the batch is a negative."""
    microbatch_size: int = operational(0, at_least=0)
    """Pairs that are encoded at a time, over all devices; 0: all. Every other row of the batch is still a negative: all
    vectors are computed first, then the gradient of each microbatch from the gradient of its vectors."""
    learning_rate: float = identity(1e-3, at_least=0, at_most=1)
    """Peak learning rate, cosine to zero."""
    temperature: float = identity(0.05, at_least=1e-06)
    """Temperature of InfoNCE."""
    hard_negatives: int = identity(1, at_least=0)
    """Copies of each target with changed numbers, as further negatives; 0: off."""


@dataclass(frozen=True)
class TranslatorTrainingConfig:
    """Training of a translation model, `pbrl translator`."""

    source: str = identity("random")
    """Start: an M2M100 or NLLB model, folder, hub id or gs://...; random: a new one with a vocabulary of the text."""
    preset: Literal["tiny", "small", "base"] = identity("small", only_with=("source", "random"))
    """Sizes of a new model."""
    path: str = operational("")
    """Parallel text: JSON lines {"lang", "src", "en"}, plain or .gz; empty: the questions of the data in their
    languages and in English (of the quickstart: also the responses)."""
    direction: Literal["into_english", "from_english", "both"] = identity("into_english")
    """What is learnt: languages into English, which the reward `translation` needs, or English into languages."""
    steps: int = identity(1000, at_least=1)
    """Optimizer steps of `pbrl translator`."""
    batch_size: int = identity(64, at_least=1)
    """Pairs per step."""
    microbatch_size: int = operational(0, at_least=0)
    """Pairs whose gradients are computed at a time, over all devices; 0: all. Sums are exact."""
    learning_rate: float = identity(1e-3, at_least=0, at_most=1)
    """Peak learning rate, cosine to zero; 1e-3 is for a new model, 3e-5 is usual for a released one."""  # ASSUMED
    warmup_steps: int = identity(100, at_least=0)
    """Steps of linear warm-up, at most half of `steps`."""
    label_smoothing: float = identity(0.1, at_least=0, below=1)
    """Share of a target's weight that is spread over the vocabulary."""
    held_out: int = identity(50, at_least=1)
    """Pairs of each language that are left out of the training and translated at the end, for chrF."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters that are trained in place of the weights."""

    rank: int = identity(0, at_least=0)
    """Rank of the adapters; 0: no adapters, the weights are trained."""
    alpha: float = identity(32.0, at_least=0, only_with=("rank",))
    """Adapters are scaled by alpha / rank."""  # ASSUMED: not stated; twice a rank of 16, as is usual
    targets: tuple[str, ...] = identity(("query", "key", "value", "out", "gate", "up", "down"), only_with=("rank",))
    """Projections that get adapters."""
    quantization: Literal["none", "int8", "int4", "nf4"] = identity("none")
    """Type of the frozen kernels of all projections (QLoRA): none, int8, int4 or nf4; needs qwix."""
    tile_size: int = identity(64, at_least=1, only_with=("quantization",))
    """Number of inputs of a quantised kernel that share a scale."""
