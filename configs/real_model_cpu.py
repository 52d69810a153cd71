"""SmolLM2-135M-Instruct, judged by all-MiniLM-L6-v2, through every stage on a CPU.

Command:   pbrl train configs/real_model_cpu.py --workdir runs/real
           All stages: python benchmarks/real_model.py --workdir runs/real \\
               --policy HuggingFaceTB/SmolLM2-135M-Instruct --encoder sentence-transformers/all-MiniLM-L6-v2
           docs/real_model_cpu.md says how to get both folders, and has the times and the memory of each stage.
Hardware:  any CPU with 8 GB of memory.
Expected:  no lift. Eight steps of sixteen responses change a model of this size by nothing that can be measured, and
           MiniLM is an English encoder. It shows that real weights go through references, calibration, audit, training,
           evaluation and export.
"""

from pbrl_jax import (
    AlgoConfig,
    Config,
    DataConfig,
    EncoderConfig,
    EvalConfig,
    OptimConfig,
    PivotConfig,
    PolicyConfig,
    RewardConfig,
    RolloutConfig,
    TrainConfig,
)


def get_config() -> Config:
    return Config(
        policy=PolicyConfig(source="HuggingFaceTB/SmolLM2-135M-Instruct"),
        pivot=PivotConfig(source="policy", max_completion_length=64, keep_wrong=True),
        encoder=EncoderConfig(source="sentence-transformers/all-MiniLM-L6-v2", max_length=128),
        reward=RewardConfig(parts="whole", language_gate="hard"),
        algo=AlgoConfig(num_generations=4, beta=0.0),
        rollout=RolloutConfig(max_prompt_length=128, max_completion_length=64),
        data=DataConfig(source="quickstart", languages=("en", "es"), limit=32, prompt_style="chat_question"),
        optim=OptimConfig(learning_rate=1e-6, warmup_steps=2),
        train=TrainConfig(max_steps=8, prompts_per_step=4, microbatch_prompts=1, save_steps=4),
        eval=EvalConfig(limit=8, batch_size=8),
    )  # fmt: skip
