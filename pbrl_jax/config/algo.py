"""Settings that every algorithm and every loss has; those of one alone stand in its file, in a subclass."""

from dataclasses import dataclass
from typing import Literal

from pbrl_jax.config.fields import identity


@dataclass(frozen=True)
class AlgoConfig:
    """From rewards to a loss."""

    name: str = identity("grpo")
    """The algorithm: what advantages are made of."""
    num_generations: int = identity(8, at_least=1)
    """Samples per prompt, G."""
    num_iterations: int = identity(1, at_least=1)
    """Passes over each rollout batch (mu): optimizer steps on it, times the number of its minibatches."""
    minibatch_prompts: int = identity(0, at_least=0)
    """Prompts of a minibatch: each pass over a rollout batch goes through disjoint parts of it in a seeded order, one
    optimizer step each (verl's ppo_mini_batch_size, TRL's steps_per_generation). 0: the whole batch."""
    beta: float = identity(0.001, at_least=0)
    """Weight of the KL to the reference policy; 0 keeps no reference at all."""  # ASSUMED: not stated
    kl_estimator: str = identity("k3", only_with=("beta",))
    """Estimate of the KL. See pbrl_jax.algos.objectives.kl_estimate (loss) and algos.returns.kl_penalty (reward)."""
    kl_in: Literal["loss", "reward"] = identity("loss", only_with=("beta",))
    """loss: beta * KL is added to the loss. reward: beta * KL is taken off the rewards. One place only."""
    kl_target: float | None = identity(None, above=0)
    """KL per token that beta is steered to, starting from `beta`; None: beta is constant."""
    kl_horizon: int = identity(10000, at_least=1, only_with=("kl_target",))
    """Responses after which an adaptive beta has moved by about 20 %."""  # ASSUMED: not stated
    use_bias_correction_kl: bool = identity(False, only_with=("beta",))
    """Multiply the KL term of the loss by the importance ratio, as TRL 1.16 does."""
    importance_sampling_level: str = identity("token")
    """What has one importance ratio: token, sequence (GSPO) or sequence_token (GSPO-token). See
    pbrl_jax.algos.objectives.ratio_at_level."""
    importance_sampling_mode: str = identity("auto")
    """Correction for a sampler whose log-probs differ from the trainer's; see pbrl_jax.algos.correction. auto:
    token_truncate where they differ (a compute type below float32), off elsewhere."""
    importance_sampling_clip_min: float | None = identity(None, at_least=0, only_with=("importance_sampling_mode",))
    """Smallest weight of that correction; None is no bound."""
    importance_sampling_clip_max: float | None = identity(3.0, at_least=0, only_with=("importance_sampling_mode",))
    """Largest weight of that correction; None is no bound."""
    loss_type: str = identity("grpo")
    """The loss of a token, and how tokens are added up. See pbrl_jax.algos.losses."""
    entropy_coef: float = identity(0.0, at_least=0)
    """Weight of the entropy bonus in the loss; costs the gradient of one more softmax."""
    mask_truncated_completions: bool = identity(False)
    """Leave responses without an end of sequence out of the loss."""
    mask_zero_std_groups: bool = identity(False)
    """Leave groups whose rewards are all the same out of the loss, its count and its KL."""
    max_sampling_rounds: int = identity(1, at_least=1)
    """Dynamic sampling (DAPO): groups whose rewards are all the same are replaced by groups of further prompts, drawn
    in at most so many rounds of the same shape; 1 is off. What is still the same after the last round stays."""
