"""The whole main job in seconds: a random policy of 0.1 M parameters on the small quickstart task.

Command:   pbrl train configs/tiny_cpu.py --workdir runs/tiny --train.max-steps 4
Hardware:  any CPU. The first time all of it takes 42 to 51 seconds of processor time (29 to 36 seconds on two idle
           cores), most of them compilation; compiled programs are kept (`log.compilation_cache`), and a later run takes
           14 seconds of processor time.
Expected:  it learns nothing; every stage runs: data, references, rollout, reward, update, evaluation, resume.
"""

from pbrl_jax import (
    AlgoConfig,
    Config,
    DataConfig,
    EncoderConfig,
    EvalConfig,
    OptimConfig,
    RolloutConfig,
    TrainConfig,
)


def get_config() -> Config:
    return Config(
        encoder=EncoderConfig(max_length=32),
        algo=AlgoConfig(num_generations=4, beta=0.01),
        rollout=RolloutConfig(max_prompt_length=48, max_completion_length=16),
        data=DataConfig(path="small", languages=("en", "sw", "zh"), limit=32, english_share=0.25, vocab_size=600),
        optim=OptimConfig(learning_rate=1e-3),
        train=TrainConfig(max_steps=4, prompts_per_step=4, save_steps=2),
        eval=EvalConfig(limit=4, batch_size=12),
    )
