"""Settings that all algorithms and losses share; a single one's own settings are in its file, in a subclass."""

from dataclasses import dataclass
from typing import Literal

from pbrl_jax.config.fields import identity


@dataclass(frozen=True)
class AlgoConfig:
    """How rewards become a loss."""

    name: str = identity("grpo")
    """The algorithm, which computes advantages."""
    num_generations: int = identity(8, at_least=1)
    """Samples per prompt, G."""
    num_iterations: int = identity(1, at_least=1)
    """Passes over each rollout batch (mu). A pass is one optimizer step for each minibatch."""
    minibatch_prompts: int = identity(0, at_least=0)
    """Prompts of a minibatch: each pass splits the rollout batch into minibatches in a seeded order, with one optimizer
    step each (verl's ppo_mini_batch_size, TRL's steps_per_generation). 0: the whole batch."""
    beta: float = identity(0.001, at_least=0)
    """Weight of the KL to the reference policy; with 0 no reference is kept."""  # ASSUMED: not stated
    kl_estimator: str = identity("k3", only_with=("beta",))
    """Estimate of the KL. See pbrl_jax.algos.objectives.kl_estimate (loss) and algos.returns.kl_penalty (reward)."""
    kl_in: Literal["loss", "reward"] = identity("loss", only_with=("beta",))
    """loss: beta * KL is added to the loss. reward: beta * KL is subtracted from the rewards."""
    kl_target: float | None = identity(None, above=0)
    """Target KL per token: beta adapts to reach it, starting from `beta`; None: beta is constant."""
    kl_horizon: int = identity(10000, at_least=1, only_with=("kl_target",))
    """Responses after which an adaptive beta has moved by about 20 %."""  # ASSUMED: not stated
    use_bias_correction_kl: bool = identity(False, only_with=("beta",))
    """Multiply the KL term of the loss by the importance ratio, as TRL 1.16 does."""
    importance_sampling_level: str = identity("token")
    """Level of the importance ratio: token, sequence (GSPO) or sequence_token (GSPO-token). See
    pbrl_jax.algos.objectives.ratio_at_level."""
    importance_sampling_mode: str = identity("auto")
    """Correction for a sampler whose log-probs differ from the trainer's; see pbrl_jax.algos.correction. auto:
    token_truncate if they can differ (a compute type below float32), else off."""
    importance_sampling_clip_min: float | None = identity(None, at_least=0, only_with=("importance_sampling_mode",))
    """Smallest weight of that correction; None: no bound."""
    importance_sampling_clip_max: float | None = identity(3.0, at_least=0, only_with=("importance_sampling_mode",))
    """Largest weight of that correction; None: no bound."""
    loss_type: str = identity("grpo")
    """The loss of a token, and how tokens are aggregated. See pbrl_jax.algos.losses."""
    entropy_coef: float = identity(0.0, at_least=0)
    """Weight of the entropy bonus in the loss; costs one more softmax and its gradient."""
    mask_truncated_completions: bool = identity(False)
    """Exclude responses without an end of sequence from the loss."""
    mask_zero_std_groups: bool = identity(False)
    """Exclude groups whose rewards are all equal from the loss, its count and its KL; packed updates do not compute
    them."""
    max_sampling_rounds: int = identity(1, at_least=1)
    """Dynamic sampling (DAPO): groups whose rewards are all equal are replaced by groups of further prompts, in at most
    this many sampling rounds of the same shape; 1: off. Such groups of the last round are kept."""
