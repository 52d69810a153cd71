"""The main job on real text: GSM8K's training questions in eight languages, judged against the human English solutions.

Command:   export PBRL_DATA=/path/to/benchmarks        (mgsm8k_questions/, gsm8k/ and mgsm/ in their original files)
           pbrl train configs/gsm8k_multilingual_tiny.py --workdir runs/gsm8k --train.max-steps 3
           With a start policy and an encoder of the same vocabulary:
           pbrl encoder configs/gsm8k_multilingual_tiny.py --workdir runs/gsm8k_encoder
           pbrl sft     configs/gsm8k_multilingual_tiny.py --workdir runs/gsm8k_sft
           pbrl train   configs/gsm8k_multilingual_tiny.py --workdir runs/gsm8k_rl \\
               --encoder.source runs/gsm8k_encoder --policy.source runs/gsm8k_sft
Hardware:  any CPU with 4 GB of memory. Three steps and the evaluation take about three CPU minutes, a third of them for
           the vocabulary and the references' vectors, which are made once per work directory.
Expected:  `eval/accuracy/*` stays near 0: a policy of two million parameters does not learn to reason, whatever its
           reward. A random policy mixes all languages, so the gate rejects every response: all rewards are
           reward.rejected_value, `frac_reward_zero_std` is 1 and nothing changes. `pbrl sft` teaches English solutions
           alone, the only ones that the data has; prompts in other languages stay without a start policy.
Shows:     that 59,000 real questions in four scripts, their references, the language gate, per-language metrics,
           MGSM's eleven languages, stop and resume all go through, at real lengths.
Does not:  show that the method works. `pbrl quickstart` does that in miniature.

Evaluation prompts in Bengali, Telugu and Thai are long: training has no text in them, so the vocabulary spells them in
bytes. eval.max_prompt_length holds the longest one.
"""

from pbrl_jax import (
    AlgoConfig,
    Config,
    ContrastiveConfig,
    DataConfig,
    EncoderConfig,
    EvalConfig,
    OptimConfig,
    PivotConfig,
    PolicyConfig,
    RewardConfig,
    RolloutConfig,
    SftConfig,
    TrainConfig,
)

MGSM_LANGUAGES = ("en", "bn", "de", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")


def get_config() -> Config:
    return Config(
        policy=PolicyConfig(preset="quickstart"),
        pivot=PivotConfig(source="dataset"),
        encoder=EncoderConfig(preset="quickstart", max_length=192),
        reward=RewardConfig(language_gate="hard"),
        algo=AlgoConfig(num_generations=4, beta=0.001),
        rollout=RolloutConfig(max_prompt_length=160, max_completion_length=128),
        data=DataConfig(
            source="mgsm8k",
            languages=("en", "de", "es", "fr", "ja", "ru", "sw", "zh"),
            overlong_prompts="drop",
            vocab_size=8000,
        ),
        optim=OptimConfig(learning_rate=1e-4),
        train=TrainConfig(max_steps=100, prompts_per_step=16, save_steps=20),
        sft=SftConfig(steps=200, batch_size=32),
        contrastive=ContrastiveConfig(steps=200, batch_size=64),
        eval=EvalConfig(source="mgsm", languages=MGSM_LANGUAGES, limit=4, batch_size=22, max_prompt_length=1664),
    )
