"""Your own JSON lines of prompts, and a Llama of one billion parameters on one GPU: a file to copy and change.

Command:   pbrl pivots configs/own_jsonl.py --workdir runs/own --data.path my_prompts.jsonl
           pbrl train configs/own_jsonl.py --workdir runs/own --data.path my_prompts.jsonl
           docs/guide_one_gpu.md goes through all steps, from the file to an exported and evaluated model.
Hardware:  one GPU of 48 GB or more, by arithmetic and untried: float32 parameters, gradients, two moments and the
           reference are 20 bytes for each of 1.24 billion parameters, 25 GB; keys and values of 64 responses, logits
           and activations take the rest. --algo.beta 0 saves the reference, 5 GB.
Expected:  not measured. Look at `pbrl report runs/own` after some fifty steps: the reward and the share of responses in
           the right language should rise, the gap to English should shrink, and English should stay.
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
        policy=PolicyConfig(source="meta-llama/Llama-3.2-1B-Instruct", dtype="bfloat16", remat="full"),
        pivot=PivotConfig(source="policy", max_completion_length=512),
        encoder=EncoderConfig(source="intfloat/multilingual-e5-base", max_length=512, prefix="query: "),
        reward=RewardConfig(language_gate="hard", answer_weight=0.5),
        algo=AlgoConfig(num_generations=8, beta=0.001),
        rollout=RolloutConfig(max_prompt_length=512, max_completion_length=512),
        data=DataConfig(
            source="table", path="my_prompts.jsonl", languages=("sw", "th", "bn"), english_share=0.125,
            overlong_prompts="drop", prompt_style="chat",
        ),
        optim=OptimConfig(learning_rate=1e-6, warmup_steps=10),
        train=TrainConfig(
            max_steps=200, prompts_per_step=8, microbatch_prompts=1, logprob_chunk=1024, save_steps=50, eval_steps=50
        ),
        eval=EvalConfig(
            source="mgsm", languages=("en", "sw", "th", "bn"), limit=50, batch_size=64, max_prompt_length=1024
        ),
    )  # fmt: skip
