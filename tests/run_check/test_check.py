"""Settings of the algorithm that cannot run, each answered with what to type."""

import contextlib

import pytest

from pbrl_jax import Config, with_values
from pbrl_jax.algos.losses import LOSSES, ClipConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.run.check import batch_arithmetic, refuse_muon, repeatability, validate

TWO_REWARDS = {"functions": ("cosine", "answer"), "reward_weights": (1.0, 0.5)}

REFUSED = {
    "cispo without its bound": ({"loss_type": "cispo"}, "Use --algo.epsilon-high 5.0"),
    "cispo with a distance": ({"loss_type": "cispo", "epsilon_high": 0.28}, "Use --algo.epsilon-high 5.0"),
    "delta on a gate": ({"loss_type": "sapo", "delta": 2.0}, "sapo does not clip"),
    "delta below the clip": ({"epsilon_high": 0.5, "delta": 1.3}, "more than 1 \\+ epsilon_high = 1.5"),
    "gpg off-policy": ({"loss_type": "gpg", "num_iterations": 2}, "no importance ratio.*Use --algo.num-iterations 1"),
    "minibatches that do not divide": ({"minibatch_prompts": 5}, "does not divide train.prompts_per_step=32"),
    "gpg in minibatches": (
        {"loss_type": "gpg", "minibatch_prompts": 4},
        "but algo.minibatch_prompts is 4. Use --algo.minibatch-prompts 0, or",
    ),
    "no weight of 1": (
        {"importance_sampling_clip_max": 0.5},
        "at least 1.*Use --algo.importance-sampling-clip-max 3.0",
    ),
    "weights above 1": (
        {"importance_sampling_clip_min": 1.5},
        "at most 1.*Use --algo.importance-sampling-clip-min 0.5",
    ),
    "bounds crossed": ({"importance_sampling_clip_min": 4.0}, "above algo.importance_sampling_clip_max 3.0"),
    "a target without KL": ({"kl_target": 0.1, "beta": 0.0}, "keeps no reference. Use --algo.beta"),
    "two places of the KL": ({"kl_in": "reward", "use_bias_correction_kl": True}, "algo.kl_in is reward"),
    "an unknown place": ({"kl_in": "rewards"}, "Did you mean 'reward'"),
    "a baseline nobody reads": ({"name": "opo", "leave_one_out": True}, "leave_one_out=True mean nothing to.*opo"),
    "a floor nobody reads": ({"name": "gpg", "min_reward_std": 0.1}, "min_reward_std=0.1 mean nothing"),
    "a discount nobody reads": ({"gamma": 0.9}, "gives every token of a response the same advantage"),
    "lambda of another": (
        {"lam": 0.5},
        "algo.lam=0.5 mean nothing to algo.name grpo. Use --algo.lam 0.95, or --algo.name",
    ),
    "a clip nobody reads": (
        {"loss_type": "sapo", "epsilon": 0.1},
        "algo.epsilon=0.1 mean nothing here: .*sapo does not",
    ),
    "a lower clip of CISPO": (
        {"loss_type": "cispo", "epsilon_high": 5.0, "epsilon": 0.1},
        "algo.epsilon=0.1 mean noth",
    ),
    "a gate nobody reads": ({"sapo_temperature_pos": 2.0}, "algo.sapo_temperature_pos=2.0 mean nothing to.*sapo"),
    "a scale of PPO": ({"name": "ppo", "scale_rewards": "none"}, "algo.scale_rewards=none mean nothing to.*ppo"),
    "a scale of OPO": ({"name": "opo", "scale_rewards": "batch"}, "algo.scale_rewards=batch mean nothing to.*opo"),
    "an epsilon nobody adds": (
        {"name": "reinforce_plus_plus", "advantage_epsilon": 0.1},
        "algo.advantage_epsilon=0.1 mean nothing to",
    ),
    "one sample": ({"num_generations": 1}, "a group needs two samples"),
    "one sample of OPO": ({"num_generations": 1, "name": "opo", "scale_rewards": "none"}, "a group needs two samples"),
    "one sample and no scale": ({"num_generations": 1, "scale_rewards": "none"}, "a group needs two samples"),
    "one reward": ({"multi_objective_aggregation": "normalize_then_sum"}, "needs two reward functions.*there is 1"),
    "not a number": ({"entropy_coef": float("nan")}, "algo.entropy_coef is nan"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    algo, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        validate(with_values(Config(), algo=algo), 1)


def test_separate_rewards_exclude_what_they_do_themselves():
    for other in ({"kl_in": "reward"}, {"scale_rewards": "none"}, {"leave_one_out": True}):
        algo = {"multi_objective_aggregation": "normalize_then_sum", **other}
        with pytest.raises(ConfigError, match="scales rewards by itself"):
            validate(with_values(Config(), algo=algo, reward=TWO_REWARDS), 1)


def test_separate_rewards_are_those_of_grpo():
    algo = {"name": "gpg", "multi_objective_aggregation": "normalize_then_sum"}
    with pytest.raises(ConfigError, match="normalize_then_sum mean nothing to algo.name gpg"):
        validate(with_values(Config(), algo=algo, reward=TWO_REWARDS), 1)


@pytest.mark.parametrize(
    "longest, settings, message",
    [
        (64, {"overlong_cache": 65}, "more than rollout.max_completion_length=64: the shortest"),
        (64, {"overlong_length": 80, "overlong_cache": 16}, "longer than 64 tokens .*: none would be"),
        (64, {"overlong_length": 80, "overlong_cache": 17}, None),
        (64, {"overlong_cache": 64}, None),
        (64, {}, None),
    ],
)
def test_overlong_tells_responses_apart(longest, settings, message):
    reward = {"functions": ("cosine", "overlong"), "reward_weights": (1.0, 1.0), **settings}
    config = with_values(Config(), reward=reward, rollout={"max_completion_length": longest})
    with pytest.raises(ConfigError, match=message) if message else contextlib.nullcontext():
        validate(config, 1)


ACCEPTED = (
    {},
    {"loss_type": "cispo", "epsilon_high": 5.0},
    {"loss_type": "gpg", "name": "gpg"},
    {"delta": 4.0, "num_iterations": 4},
    {"name": "reinforce_plus_plus", "num_generations": 1, "gamma": 0.99, "kl_in": "reward"},
    {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    {"importance_sampling_mode": "sequence_mask", "importance_sampling_clip_max": None},
    {"importance_sampling_clip_min": 1.0, "importance_sampling_clip_max": 1.0},
    {"importance_sampling_mode": "off", "importance_sampling_clip_max": 0.5},
    {"kl_target": 0.05},
    *({"loss_type": name, "epsilon_high": 0.28} for name, loss in LOSSES.items() if loss.settings is ClipConfig),
)


@pytest.mark.parametrize("algo", ACCEPTED, ids=str)
def test_accepted(algo):
    validate(with_values(Config(), algo=algo), 1)


@pytest.mark.parametrize(
    "sections, message",
    [
        (
            {"reward": {"repetition_penalty": -2.0}},
            "reward.repetition_penalty=-2.0 mean nothing to reward.functions cos",
        ),
        (
            {"reward": {"functions": ("answer",), "similarity": "floor"}},
            "reward.similarity=floor mean nothing to.*cosine",
        ),
        (
            {"reward": {"functions": ("my.rewards:f",), "answer_weight": 0.7}},
            "reward.answer_weight=0.7 mean nothing to",
        ),
        (
            {"reward": {"hybrid_answer": "comet"}},
            "reward.hybrid_answer=comet mean nothing to.*--reward.functions hybrid",
        ),
        ({"rollout": {"top_k": 1}}, "rollout.top_k is 1: all samples of a group would be equal. Use --rollout.top-k 0"),
        ({"lora": {"rank": 4}, "optim": {"optimizer": "muon"}}, "optim.optimizer muon .*lora.rank=4.*optimizer adamw"),
        ({"lora": {"rank": 4, "alpha": 0.0}}, "lora.alpha is 0, .*lora.rank=4 would do nothing.*Use --lora.alpha 8.0"),
        (
            {"policy": {"source": "runs/sft", "tokenizer": "x.model"}},
            "policy.tokenizer is 'x.model', but policy.source",
        ),
        (
            {"optim": {"schedule": "linear", "schedule_steps": 60}, "train": {"max_steps": 100}},
            "ends at learning rate 0 after optim.schedule_steps=60.*Use --train.max-steps 60",
        ),
    ],
)
def test_settings_that_do_not_do_what_they_promise(sections, message):
    with pytest.raises(ConfigError, match=message):
        validate(with_values(Config(), **sections), 1)


def test_muon_is_refused_beside_adapters_where_it_is_used():
    """`train` does not read sft.optimizer; `sft` asks for itself."""
    config = with_values(Config(), lora={"rank": 4}, sft={"optimizer": "muon"})
    validate(config, 1)
    with pytest.raises(ConfigError, match="sft.optimizer muon .*lora.rank=4.*Use --sft.optimizer adamw"):
        refuse_muon(config, "sft.optimizer", config.sft.optimizer)
    refuse_muon(with_values(config, lora={"rank": 0}), "sft.optimizer", "muon")


@pytest.mark.parametrize(
    "sections",
    [
        {"reward": {"functions": ("hybrid",), "similarity": "affine", "hybrid_form": "gated"}},
        {"reward": {"functions": ("cosine", "repetition"), "reward_weights": (1.0, 0.0), "repetition_penalty": -2.0}},
        {"reward": {"functions": ("my.rewards:f", "overlong"), "reward_weights": (1.0, 1.0), "overlong_length": 9}},
        {"optim": {"schedule": "cosine", "schedule_steps": 60, "min_learning_rate_share": 0.1}},
        {"policy": {"source": "runs/sft", "preset": "quickstart"}},
    ],
)
def test_settings_that_are_read(sections):
    validate(with_values(Config(), **sections), 1)


def test_separate_rewards_are_accepted():
    algo = {"multi_objective_aggregation": "normalize_then_sum"}
    validate(with_values(Config(), algo=algo, reward=TWO_REWARDS), 1)


def test_the_arithmetic_of_minibatches():
    """Three passes over four minibatches are twelve steps, each of eight prompts."""
    config = with_values(Config(), algo={"minibatch_prompts": 8, "num_iterations": 3}, train={"prompts_per_step": 32})
    parts = with_values(config, train={"microbatch_prompts": 2})
    whole = with_values(config, algo={"minibatch_prompts": 0})
    for one, words in (
        (config, "12 optimizer step(s) on each, of 8 prompts, in 1 microbatch(es) of 8 groups"),
        (parts, "12 optimizer step(s) on each, of 8 prompts, in 4 microbatch(es) of 2 groups"),
        (whole, "3 optimizer step(s) on each, in 1 microbatch(es) of 32 groups"),
    ):
        assert f"tokens per rollout; {words};" in batch_arithmetic(one, 1)


def test_a_gpu_without_deterministic_sums_is_named():
    assert "xla_gpu_deterministic_ops" in repeatability("gpu", "--xla_gpu_autotune_level=4")
    assert repeatability("gpu", "--xla_gpu_deterministic_ops=true --xla_dump_to=x") == ""
    assert repeatability("cpu", "") == repeatability("tpu", "") == ""
