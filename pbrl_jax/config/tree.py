"""One frozen tree of settings per experiment.

Experiments are Python files with `get_config() -> Config`; the command line overrides single fields
(`--algo.beta 0.02`). Names are TRL's where TRL has one. Each field is *identity* (another value makes another
experiment: refused at resume) or *operational* (cadence, mesh, paths: free to change). Lengths are in tokens,
durations in optimizer steps, shares in [0, 1]. What the paper does not state is marked ASSUMED.
"""

import dataclasses
from dataclasses import dataclass

from pbrl_jax.config.algo import AlgoConfig
from pbrl_jax.config.endpoint import EndpointConfig
from pbrl_jax.config.fields import identity, operational
from pbrl_jax.config.methods import DpoConfig, LoraConfig
from pbrl_jax.config.older import takes_old_names
from pbrl_jax.config.reward import RewardConfig

__all__ = ["AlgoConfig", "Config", "DpoConfig", "EndpointConfig", "LoraConfig", "RewardConfig", "with_values"]


@dataclass(frozen=True)
class PolicyConfig:
    source: str = identity("random")
    """`random` (a new model of `preset`), or a folder: an exported policy or a finished work directory."""
    preset: str = identity("tiny")
    """Size and switches of a random policy: a name in pbrl_jax.models.specs.DECODERS."""
    tokenizer: str = identity("")
    """A SentencePiece file, a tokenizer folder or hub id; empty: train SentencePiece on the run's own text."""
    dtype: str = identity("float32")
    """Compute type: float32 or bfloat16. Parameters and optimizer state stay float32."""
    remat: str = operational("dots")
    """What a layer recomputes in the backward pass: none, full, or dots (keep matrix products: the fastest on CPU,
    where writing activations costs more than making them again)."""
    attention: str = operational("auto")
    """Attention kernel: a name in pbrl_jax.models.attention.KERNELS, or auto."""


@dataclass(frozen=True)
class EncoderConfig:
    source: str = identity("random")
    """`random`, or the folder of an encoder (written by `pbrl encoder`)."""
    preset: str = identity("tiny")
    """Size of a new encoder: a name in pbrl_jax.models.specs.ENCODERS."""
    max_length: int = identity(64)
    """Tokens the encoder reads at a time; longer texts are read in chunks and their vectors pooled by length. The share
    of such responses is logged (encoder_cut)."""
    dtype: str = identity("")
    """Compute type, float32 or bfloat16; the weights of a released encoder are held in it too. Empty: float32, or what
    the folder says."""
    prefix: str = identity("")
    """Text put before every input, on both sides (`query: ` for E5); empty: the default of the encoder's folder."""


@takes_old_names("pivot")
@dataclass(frozen=True)
class PivotConfig:
    source: str = identity("dataset")
    """Where English references come from: dataset (the data set's own), policy (written by the start policy), file,
    endpoint (written by the model of section endpoint)."""
    store: str = operational("")
    """Folder of the pivot store; empty: `pivots/` in the work directory."""
    file: str = operational("")
    """source file: the JSON lines file of references."""
    max_completion_length: int = identity(64)
    """Longest reference the expert may write."""
    temperature: float = identity(0.0)
    """Sampling temperature of the expert; 0 is greedy."""  # ASSUMED: not stated in the material at hand
    keep_wrong: bool = identity(False)
    """Keep references whose answer differs from a known gold answer."""  # ASSUMED: not stated
    samples: int = identity(1)
    """References that the expert writes to each question; more than one needs a temperature."""
    min_agreement: float = identity(0.0)
    """Least share of a question's samples whose answer is the most frequent one; other questions are dropped."""
    references: int = identity(1)
    """References of a question that are kept, of those with the answer that most samples have; see
    reward.references."""


@dataclass(frozen=True)
class RolloutConfig:
    max_prompt_length: int = identity(64)
    """Longest prompt; a longer one is an error at load, or dropped (`data.overlong_prompts`)."""
    max_completion_length: int = identity(64)
    """Longest response, R."""
    temperature: float = identity(1.0)
    """Sampling temperature; log-probs are those of the tempered distribution."""
    top_p: float = identity(1.0)
    """Nucleus mass; 1 is off."""
    top_k: int = identity(0)
    """Candidates kept; 0 is off."""
    weights: str = operational("whole")
    """How the policy's matrices lie while it decodes: whole (in the compute type, copied once a rollout to every device
    that mesh.fsdp shares them over) or as_trained (they stay shared: less memory, and exchanged at every token)."""
    segment_length: int = operational(128)
    """Tokens decoded between two looks at the outside (signals, early exit); at most 128."""


@dataclass(frozen=True)
class DataConfig:
    source: str = identity("quickstart")
    """A name in pbrl_jax.data.sources.SOURCES."""
    path: str = operational("")
    """File, folder or hub id; empty: the folder PBRL_DATA where the source is a known benchmark."""
    split: str = identity("train")
    """Split of the source."""
    languages: tuple[str, ...] = identity(("en", "es", "de", "sw", "id", "zh", "th", "bn"))
    """Languages the policy is trained in."""
    columns: tuple[str, ...] = identity(())
    """For table sources: `field=column` pairs, e.g. question=prompt answer=label language=lang."""
    limit: int = identity(0)
    """Rows per language; 0: all."""
    english_share: float = identity(0.125)
    """Share of each batch that is English, replayed against forgetting."""  # ASSUMED: not stated
    overlong_prompts: str = identity("error")
    """error or drop: what happens to prompts longer than rollout.max_prompt_length."""
    language_weights: tuple[str, ...] = identity(())
    """`language=weight` pairs: how often a language is drawn, as a factor on its share; 1 where not named."""
    language_temperature: float = identity(1.0)
    """Shares of languages are (rows)^(1 / temperature): 1 is as they come, larger ones are more even."""
    prompt_style: str = identity("plain")
    """Words and chat template around a question: a name that pbrl_jax.text.prompts knows."""
    thinking: str = identity("default")
    """The switch of chat templates that have one (Qwen3): on, off (an empty thought), or the template's default."""
    vocab_size: int = identity(2000)
    """Pieces of a SentencePiece vocabulary trained on the run's own text."""


@dataclass(frozen=True)
class OptimConfig:
    optimizer: str = identity("adamw")
    """adamw, or muon (matrices of the layers by Muon, everything else by AdamW at the same learning rate)."""
    learning_rate: float = identity(1e-6)
    """Peak learning rate."""  # ASSUMED: not stated in the material at hand
    schedule: str = identity("constant")
    """constant, linear or cosine, after the warm-up."""
    warmup_steps: int = identity(0)
    """Steps of linear warm-up."""
    schedule_steps: int = identity(0)
    """Length of the schedule, a field of its own so that max_steps may change; 0 only for constant."""
    min_learning_rate_share: float = identity(0.0)
    """Share of the peak that a decaying schedule ends at."""
    weight_decay: float = identity(0.0)
    """Decoupled weight decay."""
    b1: float = identity(0.9)
    """Decay of the first moment."""
    b2: float = identity(0.999)
    """Decay of the second moment."""
    eps: float = identity(1e-8)
    """Adam's epsilon."""
    max_grad_norm: float = identity(1.0)
    """Clip of the global gradient norm; 0 is off."""


@dataclass(frozen=True)
class TrainConfig:
    max_steps: int = operational(100)
    """Stop after this many optimizer steps."""
    prompts_per_step: int = identity(32)
    """Prompts of a rollout batch, P, over all devices."""
    microbatch_prompts: int = operational(0)
    """Prompt groups whose gradients are computed at a time; 0: all. Sums are exact."""
    microbatch_samples: int = operational(0)
    """Below a group: samples of a group whose gradients are computed at a time, the prompt anew for each part;
    microbatch_prompts then counts such parts. 0: whole groups, whose prompt is computed once."""
    logprob_chunk: int = operational(128)
    """Response positions, over all rows of a microbatch, in units of which logits are made."""
    fused: bool = identity(False)
    """Rollout, reward and update as one compiled program; needs a shared tokenizer."""
    offload: tuple[str, ...] = operational(())
    """What lies in the host's memory between its uses, where the platform has such a memory: optimizer (its moments),
    reference (the start policy of the KL term; it is then read before the gradient, microbatch by microbatch)."""
    packed: bool = operational(True)
    """Update on packed responses where that saves work: cost follows the tokens produced."""
    save_steps: int = operational(50)
    """Checkpoint every so many steps; the last step is always saved."""
    save_total_limit: int = operational(3)
    """Checkpoints kept."""
    eval_steps: int = operational(0)
    """Evaluate every so many steps; 0: only at the end."""
    eval_on_start: bool = operational(True)
    """With eval_steps, evaluate before the first step too: what the report calls before."""
    logging_steps: int = operational(1)
    """Metrics are written every so many steps."""
    seed: int = identity(0)
    """Seed of everything."""


@dataclass(frozen=True)
class SftConfig:
    source: str = identity("pivot")
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
    prompts: int = identity(512)
    """source samples: prompts that are answered."""
    packed: bool = operational(False)
    """Several rows per stream of tokens, so that padding costs nothing; loss and gradient are the same."""
    steps: int = identity(300)
    """Optimizer steps of `pbrl sft`."""
    batch_size: int = identity(64)
    """Rows per step."""
    optimizer: str = identity("adamw")
    """adamw or muon, as in `optim`."""
    learning_rate: float = identity(2e-3)
    """Peak learning rate, cosine to zero."""
    warmup_steps: int = identity(20)
    """Steps of linear warm-up."""
    english_rows: int = identity(8000)
    """Quickstart task: English rows of the start policy's text."""
    warm_rows_per_language: int = identity(40)
    """Quickstart task: rows of each other language that the start policy sees."""


@dataclass(frozen=True)
class ContrastiveConfig:
    steps: int = identity(200)
    """Optimizer steps of `pbrl encoder`."""
    batch_size: int = identity(96)
    """Pairs per step; every other row of the batch is a negative."""
    learning_rate: float = identity(1e-3)
    """Peak learning rate, cosine to zero."""
    temperature: float = identity(0.05)
    """Temperature of InfoNCE."""
    hard_negatives: int = identity(1)
    """Number-changed copies of each target that join the negatives; 0 is off."""


@dataclass(frozen=True)
class MeshConfig:
    data: int = operational(-1)
    """Devices that hold different rows and whole parameters; -1: what the others leave."""
    fsdp: int = operational(1)
    """Devices that hold different rows and share each parameter."""
    tensor: int = operational(1)
    """Devices that share each matrix product."""


@dataclass(frozen=True)
class EvalConfig:
    source: str = operational("")
    """Data source of the evaluation; empty: the training source's test split."""
    path: str = operational("")
    """As data.path."""
    split: str = operational("test")
    """Split of the evaluation source."""
    languages: tuple[str, ...] = operational(())
    """Languages evaluated; empty: those of data.languages."""
    limit: int = operational(0)
    """Rows per language; 0: all."""
    batch_size: int = operational(256)
    """Prompts decoded at a time."""
    max_prompt_length: int = operational(0)
    """Longest evaluation prompt; 0: rollout.max_prompt_length."""
    contamination: tuple[str, ...] = operational(())
    """Benchmarks whose problems are looked for in the training prompts and references before the first step; `all`
    stands for every one that can be loaded. The result is W/contamination.json."""
    overlap_ngram: int = operational(13)
    """Words in a row (characters in Chinese, Japanese and Thai) that count as the same text."""
    max_overlap: float = operational(1.0)
    """Share of a benchmark's problems that may be in the training text; more refuses to train."""


@dataclass(frozen=True)
class LogConfig:
    tensorboard: bool = operational(True)
    """Write TensorBoard event files."""
    wandb: str = operational("")
    """Weights & Biases project that gets the metrics too (pip install -e .[wandb]); empty is off."""
    entropy: bool = operational(True)
    """Log the entropy of the policy; costs one more pass over the logits."""
    samples_per_step: int = operational(8)
    """Responses written to samples/ at each logging step, round-robin over languages."""
    compilation_cache: str = operational("~/.cache/pbrl_jax/xla")
    """Folder of the persistent compilation cache; empty is off. JAX_COMPILATION_CACHE_DIR comes before the default."""
    slow_phase_seconds: int = operational(900)
    """Say which phase (generate, reward, update, save, evaluate) is slow, with the stacks of all threads, when one
    takes longer; 0 never says it."""  # ASSUMED


@dataclass(frozen=True)
class GuardConfig:
    max_invalid_share: float = operational(0.5)
    """Stop, with the state saved, when more than this share of a step's rewards is invalid."""
    action: str = operational("warn")
    """What follows when a metric has been past its bound for `patience` steps: warn; stop (the state is saved);
    raise_beta (the KL weight is multiplied by beta_factor); or roll_back (the last good checkpoint's state, and the
    higher KL weight). See pbrl_jax.train.recovery."""
    patience: int = operational(5)
    """Steps in a row that a metric must be past its bound."""
    beta_factor: float = operational(2.0)
    """raise_beta and roll_back: what the KL weight is multiplied by; 1 leaves it."""
    max_beta: float = operational(1.0)
    """raise_beta and roll_back: the largest KL weight they may reach."""
    max_rollbacks: int = operational(3)
    """roll_back: after so many the run stops."""
    min_language_share: float | None = operational(None)
    """Least share of responses in their prompt's language; None does not look."""
    min_mean_length: float | None = operational(None)
    """Least mean length of responses, in tokens."""
    max_clipped_ratio: float | None = operational(None)
    """Largest share of responses that reach the length limit."""
    min_entropy: float | None = operational(None)
    """Least entropy of the policy per token, in nats; needs log.entropy."""
    min_reward_std: float | None = operational(None)
    """Least spread of the rewards of a step."""
    max_kl: float | None = operational(None)
    """Largest KL per token to the reference; needs algo.beta."""


@dataclass(frozen=True)
class Config:
    policy: PolicyConfig = PolicyConfig()
    pivot: PivotConfig = PivotConfig()
    encoder: EncoderConfig = EncoderConfig()
    reward: RewardConfig = RewardConfig()
    algo: AlgoConfig = AlgoConfig()
    rollout: RolloutConfig = RolloutConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()
    lora: LoraConfig = LoraConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()
    mesh: MeshConfig = MeshConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    guard: GuardConfig = GuardConfig()
    endpoint: EndpointConfig = EndpointConfig()


def with_values(config: Config, **sections: dict) -> Config:
    """`with_values(config, algo={"beta": 0.0}, train={"seed": 1})`: a copy with single fields replaced."""
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
    )
