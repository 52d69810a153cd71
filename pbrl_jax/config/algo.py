"""Settings of the algorithm; `config.tree` holds the whole tree."""

from dataclasses import dataclass

from pbrl_jax.config.fields import identity


@dataclass(frozen=True)
class AlgoConfig:
    name: str = identity("grpo")
    """The algorithm: a name in pbrl_jax.algos.ALGORITHMS."""
    num_generations: int = identity(8)
    """Samples per prompt, G."""
    num_iterations: int = identity(1)
    """Optimizer steps on each rollout batch (mu)."""
    beta: float = identity(0.001)
    """Weight of the KL to the reference policy; 0 keeps no reference at all."""  # ASSUMED: not stated
    kl_estimator: str = identity("k3")
    """k1, k2 or k3. See pbrl_jax.algos.objectives.kl_estimate (loss) and algos.returns.kl_penalty (reward)."""
    kl_in: str = identity("loss")
    """loss: beta * KL is added to the loss. reward: beta * KL is taken off the rewards. One place only."""
    kl_target: float | None = identity(None)
    """KL per token that beta is steered to, starting from `beta`; None: beta is constant."""
    kl_horizon: int = identity(10000)
    """Responses after which an adaptive beta has moved by about 20 %."""  # ASSUMED: not stated
    use_bias_correction_kl: bool = identity(False)
    """Multiply the KL term of the loss by the importance ratio, as TRL 1.16 does."""
    epsilon: float = identity(0.2)
    """Lower clip of the importance ratio: 1 - epsilon."""
    epsilon_high: float | None = identity(None)
    """Upper clip, 1 + epsilon_high; None: the same as epsilon. For loss_type cispo the largest ratio itself."""
    delta: float | None = identity(None)
    """Largest ratio that counts where the advantage is negative (two-sided clip, dual clip); None is off."""
    importance_sampling_level: str = identity("token")
    """token, sequence (GSPO) or sequence_token (GSPO-token). See pbrl_jax.algos.surrogates.ratio_at_level."""
    importance_sampling_mode: str = identity("off")
    """Correction for a sampler whose log-probs differ from the trainer's: off, token_truncate, token_mask,
    sequence_truncate or sequence_mask. See pbrl_jax.algos.correction."""
    importance_sampling_clip_min: float | None = identity(None)
    """Smallest weight of that correction; None is no bound."""
    importance_sampling_clip_max: float | None = identity(3.0)
    """Largest weight of that correction; None is no bound."""
    loss_type: str = identity("grpo")
    """grpo, bnpo, dr_grpo, dapo, cispo, sapo or gpg. See pbrl_jax.algos.surrogates and objectives.aggregate."""
    sapo_temperature_pos: float = identity(1.0)
    """loss_type sapo: sharpness of the gate where the advantage is positive."""
    sapo_temperature_neg: float = identity(1.05)
    """loss_type sapo: sharpness of the gate elsewhere."""
    entropy_coef: float = identity(0.0)
    """Weight of the entropy bonus in the loss; costs the gradient of one more softmax."""
    scale_rewards: str = identity("group")
    """What an advantage is divided by: the spread of its group, of the batch, or none."""
    min_reward_std: float = identity(0.0)
    """Least spread that an advantage is divided by; keeps near-equal groups from amplifying noise."""
    leave_one_out: bool = identity(False)
    """Baseline of the other samples only (RLOO) in place of the group mean."""
    advantage_epsilon: float = identity(1e-4)
    """Added to the spread."""
    multi_objective_aggregation: str = identity("sum_then_normalize")
    """Several rewards: sum_then_normalize, or normalize_then_sum (GDPO: each is scaled within its groups first)."""
    gamma: float = identity(1.0)
    """Discount per token, where rewards of tokens are summed (reinforce_plus_plus, ppo)."""
    lam: float = identity(0.95)
    """ppo: lambda of the generalised advantages; 1 is the return to go minus the value."""
    vf_coef: float = identity(0.1)
    """ppo: weight of the value loss beside the policy's, which it shares the trunk with."""  # ASSUMED: not stated
    cliprange_value: float | None = identity(0.2)
    """ppo: how far a value may move from that at sampling time before its loss is clipped; None does not clip."""
    critic_learning_rate: float = identity(1e-5)
    """ppo: peak learning rate of the value head; the schedule is optim's."""  # ASSUMED: not stated
    value_pretrain_steps: int = identity(0)
    """ppo: first steps, in which the value head learns and the policy stays as it is."""  # ASSUMED: not stated
    mask_truncated_completions: bool = identity(False)
    """Leave responses without an end of sequence out of the loss."""
    mask_zero_std_groups: bool = identity(False)
    """Leave groups whose rewards are all the same out of the loss, its count and its KL."""
    max_sampling_rounds: int = identity(1)
    """Dynamic sampling (DAPO): groups whose rewards are all the same are replaced by groups of further prompts, drawn
    in at most so many rounds of the same shape; 1 is off. What is still the same after the last round stays."""
