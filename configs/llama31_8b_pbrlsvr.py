"""PB-RLSVR (arXiv 2509.25543) with Llama-3.1-8B-Instruct: the paper's run, as far as it is known.

Command:   pbrl train configs/llama31_8b_pbrlsvr.py --workdir runs/llama --dry-run --devices 8
Works now: the dry run, on any machine: it checks every value and prints the resolved settings and the batch arithmetic.
           Without --dry-run the policy (HF_TOKEN: it is gated), the encoder, COMET and the translator load by their hub
           ids, and prompts go through the policy's chat template. Nobody has made this run yet: the model code is
           compared with transformers on small random weights alone (docs/checkpoints.md).
Hardware:  one host with 8 devices of 80 GB, untried. By `pbrl plan configs/llama31_8b_pbrlsvr.py --topology h100:8`
           (by hand) a device holds 47.1 GB while it samples, 20.6 GB in the reward and 45.7 GB in the update. Settings
           for a v5e-16, a v5p-8 and one H200, with their plans: configs/machines.
Expected:  the paper reports +16.41 % average multilingual improvement. Whether relative or in points, over which
           languages and benchmarks, is not known to us, so nothing here claims to reproduce it.

Known of the paper: the policy, an English expert whose responses are the references, the final reward (COMET on the
answer together with embedding or translation similarity of the reasoning), and GRPO. All that is marked ASSUMED is
ours. Of the two readings the reasoning has the embedding, which does not translate 512 responses of 2048 tokens at
every step; only answers are translated, for COMET. The other reading: --reward.hybrid-reasoning translation. COMET
hardly sees a changed number (docs/rewards.md); the verifiable answer takes its place with --reward.hybrid-answer answer
--reward.comet "" --reward.translator "". The other reward families are configs/reward_*.py.
"""

from pbrl_jax import (
    AlgoConfig,
    Config,
    DataConfig,
    EncoderConfig,
    EvalConfig,
    MeshConfig,
    OptimConfig,
    PivotConfig,
    PolicyConfig,
    RewardConfig,
    RolloutConfig,
    TrainConfig,
)

PIVOT = PivotConfig(
    source="file",  # responses of an English expert, written beforehand; which expert is ASSUMED to be free
    file="expert_responses.jsonl",  # ASSUMED: a name of ours; lines {"question": ..., "response": ...}
    max_completion_length=2048,  # ASSUMED: as long as the policy's
    temperature=0.0,  # ASSUMED: greedy
    keep_wrong=False,  # ASSUMED: a wrong reference teaches wrong reasoning
)

ENCODER = EncoderConfig(
    source="intfloat/multilingual-e5-large",  # ASSUMED: the paper's encoder is unknown
    max_length=512,  # ASSUMED: its limit
    dtype="bfloat16",  # ASSUMED: half the memory on every device
    prefix="query: ",  # ASSUMED: what its model card asks for in symmetric tasks
)

REWARD = RewardConfig(
    functions=("hybrid", "repetition", "overlong"),
    reward_weights=(1.0, 0.2, 0.2),  # ASSUMED: no penalties are mentioned; loops and padding are cheap without them
    parts="split",  # answer and reasoning are scored apart
    hybrid_answer="comet",
    hybrid_reasoning="cosine",  # ASSUMED: embedding or translation is not stated
    hybrid_form="convex",  # ASSUMED: the plainest reading of "combining"
    answer_weight=0.5,  # ASSUMED: alpha is not stated
    comet="Unbabel/wmt22-comet-da",  # ASSUMED: the checkpoint is not stated
    comet_wiring="reference",  # ASSUMED: which text takes which of its inputs is not stated
    translator="facebook/nllb-200-distilled-600M",  # ASSUMED
    language_gate="hard",  # ASSUMED: no language term is mentioned; without one, English replies win
    rejected_value=-0.2,  # ASSUMED: the floor; no penalty takes an honest attempt below it
)

ALGO = AlgoConfig(
    name="grpo",
    num_generations=8,  # ASSUMED
    num_iterations=1,  # ASSUMED: one update per rollout
    beta=0.001,  # ASSUMED
    kl_estimator="k3",  # ASSUMED: the estimator of the GRPO paper
    epsilon=0.2,  # ASSUMED
    loss_type="grpo",  # ASSUMED
    scale_rewards="group",  # ASSUMED
)


def get_config() -> Config:
    return Config(
        policy=PolicyConfig(
            source="meta-llama/Llama-3.1-8B-Instruct",
            dtype="bfloat16",  # ASSUMED: the released weights' type
            remat="full",  # ASSUMED: long responses leave no room for activations
        ),
        pivot=PIVOT,
        encoder=ENCODER,
        reward=REWARD,
        algo=ALGO,
        rollout=RolloutConfig(
            max_prompt_length=512,  # ASSUMED
            max_completion_length=2048,  # ASSUMED
            temperature=0.9,  # ASSUMED
            top_p=1.0,  # ASSUMED
        ),
        data=DataConfig(
            source="mgsm8k",  # ASSUMED: the training prompts are unknown; these are public and apart from MGSM's test
            languages=("en", "de", "es", "fr", "ja", "ru", "sw", "zh"),  # ASSUMED: those of the data
            english_share=0.125,  # ASSUMED: replay against forgetting
            overlong_prompts="drop",  # ASSUMED
            prompt_style="chat_boxed",  # ASSUMED: an instruction in the prompt's language, the answer in a box
            thinking="off",  # ASSUMED: Qwen3 alone has the switch; the response itself is the reasoning
        ),
        optim=OptimConfig(
            learning_rate=1e-6,  # ASSUMED: usual for full fine-tuning by GRPO
            schedule="constant",  # ASSUMED
            warmup_steps=10,  # ASSUMED
            weight_decay=0.0,  # ASSUMED
            max_grad_norm=1.0,  # ASSUMED
        ),
        train=TrainConfig(
            max_steps=500,  # ASSUMED
            prompts_per_step=64,  # ASSUMED: with 8 samples, 512 responses
            microbatch_prompts=8,  # ASSUMED: one prompt group per device
            logprob_chunk=8192,  # ASSUMED: 1024 positions on each of 8 devices, 0.5 GB of float32 logits
            save_steps=50,  # ASSUMED
            eval_steps=50,  # ASSUMED
        ),
        mesh=MeshConfig(data=1, fsdp=-1, tensor=1),  # ASSUMED: parameters shared by all devices of the host
        eval=EvalConfig(
            source="mgsm",  # named by a summary of the paper, beside MMLU-ProX
            languages=("en", "bn", "de", "es", "fr", "ja", "ru", "sw", "te", "th", "zh"),
            batch_size=128,  # ASSUMED
            max_prompt_length=1024,  # ASSUMED: Bengali, Telugu and Thai take more tokens
        ),
    )
