"""The settings of the quickstart; docs/quickstart.md explains them and gives results."""

from pbrl_jax.config.tree import (
    ContrastiveConfig,
    DataConfig,
    EncoderConfig,
    EvalConfig,
    OptimConfig,
    PivotConfig,
    PolicyConfig,
    RolloutConfig,
    SftConfig,
    TrainConfig,
    with_values,
)
from pbrl_jax.run.settings import AlgoConfig, Config, RewardConfig

PROBLEMS, ENGLISH_PROBLEMS = 256, 1024
"""Held-out problems per language; more in English, so that a small change is measurable."""


def quickstart_config(seed: int = 0) -> Config:
    """A policy of 1 M parameters, eight languages, and the cosine reward with a language gate on every token."""
    return Config(
        policy=PolicyConfig(preset="quickstart"),
        pivot=PivotConfig(source="policy", max_completion_length=24),
        encoder=EncoderConfig(preset="quickstart", max_length=24),
        reward=RewardConfig(
            functions=("cosine", "repetition"), reward_weights=(1.0, 0.2), answer_weight=0.5, parts="split",
            language_gate="tokens", rejected_value=0.0, similarity="floor", similarity_floor=0.45,
        ),
        algo=AlgoConfig(
            num_generations=8, beta=0.02, advantage_epsilon=0.05, scale_rewards="batch", mask_zero_std_groups=True
        ),
        rollout=RolloutConfig(max_prompt_length=30, max_completion_length=24),
        data=DataConfig(source="quickstart", limit=2000, english_share=0.125, vocab_size=2000),
        optim=OptimConfig(
            learning_rate=7e-4, schedule="linear", schedule_steps=200, warmup_steps=5
        ),
        train=TrainConfig(
            max_steps=200, prompts_per_step=32, fused=True, logprob_chunk=512, save_steps=50, save_total_limit=2,
            seed=seed,
        ),
        sft=SftConfig(
            steps=700, batch_size=32, optimizer="muon", learning_rate=5e-3, warm_rows_per_language=24
        ),
        contrastive=ContrastiveConfig(steps=200),
        eval=EvalConfig(limit=PROBLEMS, batch_size=256),
    )  # fmt: skip


def tiny_quickstart_config(seed: int = 0) -> Config:
    """Every stage in one minute, with models too small and stages too short to show an effect."""
    return with_values(
        quickstart_config(seed),
        policy={"preset": "tiny"},
        encoder={"preset": "tiny"},
        algo={"num_generations": 4},
        data={"path": "small", "languages": ("en", "sw", "zh"), "limit": 24, "vocab_size": 600},
        optim={"schedule_steps": 8},
        train={"max_steps": 4, "prompts_per_step": 8, "save_steps": 2},
        sft={"steps": 40, "batch_size": 16, "english_rows": 100, "warm_rows_per_language": 10},
        contrastive={"steps": 10, "batch_size": 16},
        eval={"limit": 8, "batch_size": 24},
        pivot={"source": "dataset"},
    )
