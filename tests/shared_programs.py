"""One tracing and compilation of a step's programs for the several runs of a test file."""

import contextlib
import dataclasses

import pytest

from pbrl_jax import Config, EvalConfig, GuardConfig
from pbrl_jax.algos.grpo import scales_rewards_separately
from pbrl_jax.train import fused, hosted

#: Settings of the loop, which no program reads.
CADENCE = {"max_steps": 1, "save_steps": 1, "save_total_limit": 1, "logging_steps": 1, "eval_steps": 0}


#: Sections that no program reads which is made for a step with a host between its parts.
HOST_SECTIONS = ("contrastive", "data", "dpo", "encoder", "endpoint", "pivot", "sft", "translator")


def programs_of(config: Config) -> Config:
    """What the programs of a step may depend on; `make_generate` is given slots and weights by value."""
    default, train = Config(), dataclasses.replace(config.train, **CADENCE)
    config = dataclasses.replace(config, train=train, guard=GuardConfig(), eval=EvalConfig())
    if config.train.fused:
        return config
    unread = {name: getattr(default, name) for name in HOST_SECTIONS}
    weights = config.reward.reward_weights if scales_rewards_separately(config.algo) else (1.0,)
    reward = dataclasses.replace(default.reward, reward_weights=weights)
    rollout = dataclasses.replace(config.rollout, slots=0, weights=default.rollout.weights)
    return dataclasses.replace(config, **unread, reward=reward, rollout=rollout)


@contextlib.contextmanager
def programs_made_once(made: dict):
    """Runs inside the block take programs from `made` where an earlier run had the same settings, and leave theirs."""

    def once(make):
        def first(*arguments):
            key = (make.__name__, *(programs_of(x) if isinstance(x, Config) else x for x in arguments))
            if key not in made:
                made[key] = make(*arguments)
            return made[key]

        return first

    with pytest.MonkeyPatch.context() as patch:
        for name in ("make_generate", "make_targets", "make_policy_update", "make_rows"):
            patch.setattr(hosted, name, once(getattr(hosted, name)))
        patch.setattr(fused, "make_fused_step", once(fused.make_fused_step))
        yield made
