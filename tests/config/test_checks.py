"""What fields declare beside themselves: types, closed sets, ranges, names, and the switch that they hang on."""

import dataclasses

import pytest

from pbrl_jax import Config, with_values
from pbrl_jax.config.checks import check_fields, range_words, unread_fields, unread_sections
from pbrl_jax.config.fields import Rules
from pbrl_jax.core.errors import ConfigError

REFUSED = {
    "a misspelt choice": (
        {"pivot": {"source": "datset"}},
        r"pivot.source is 'datset'. Known: dataset,.*Did you mean 'data",
    ),
    "a misspelt name": ({"algo": {"scale_rewards": "groups"}}, "algo.scale_rewards is 'groups'.*Did you mean 'group'"),
    "text for a number": ({"algo": {"beta": "0.1"}}, r"algo.beta is '0.1' \(str\); expected float"),
    "a share of steps": ({"train": {"max_steps": 1.5}}, r"train.max_steps is 1.5 \(float\); expected int"),
    "a truth for a number": ({"train": {"max_steps": True}}, r"train.max_steps is True \(bool\); expected int"),
    "a number for a truth": ({"train": {"packed": 1}}, r"train.packed is 1 \(int\); expected bool"),
    "None where it is nothing": ({"algo": {"beta": None}}, "algo.beta is None"),
    "a list": ({"data": {"languages": ["sw"]}}, r"data.languages is \['sw'\]; expected a tuple of str"),
    "an item of another type": ({"reward": {"functions": ("cosine", 3)}}, r"reward.functions is 3 \(int\)"),
    "NaN": ({"algo": {"entropy_coef": float("nan")}}, "algo.entropy_coef is nan; expected at least 0"),
    "infinity": ({"algo": {"beta": float("inf")}}, "algo.beta is inf"),
    "NaN without a range": ({"reward": {"rejected_value": float("nan")}}, "rejected_value is nan; expected a finite"),
    "NaN in a tuple": ({"reward": {"reward_weights": (float("nan"),)}}, "reward_weights is nan; expected a finite"),
    "a learning rate above 1": (
        {"optim": {"learning_rate": 20.0}},
        "optim.learning_rate is 20.0; expected from 0 to 1",
    ),
    "an open end": ({"optim": {"b1": 1.0}}, "optim.b1 is 1.0; expected at least 0 and below 1"),
    "what rounds to an open end": ({"optim": {"b2": 1 - 1e-9}}, "optim.b2 is 0.999999999; expected .* below 1"),
    "what rounds to nothing": ({"optim": {"eps": 1e-60}}, "optim.eps is 1e-60; expected above 0"),
    "more than float32 holds": ({"algo": {"beta": 1e39}}, r"algo.beta is 1e\+39"),
    "an open start": ({"dpo": {"beta": 0.0}}, "dpo.beta is 0.0; expected above 0"),
    "an algorithm's own": ({"algo": {"lam": -5.0}}, "algo.lam is -5.0; expected from 0 to 1"),
    "a loss's own": ({"algo": {"sapo_temperature_pos": 0.0}}, "algo.sapo_temperature_pos is 0.0; expected at least"),
    "a reward's own": ({"reward": {"judge_opponents": 0}}, "reward.judge_opponents is 0; expected at least 1"),
    "a reason": ({"reward": {"repetition_penalty": 0.5}}, "expected at most 0: more than 0 rewards repetition"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    sections, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        check_fields(with_values(Config(), **sections))


def test_defaults_and_bounds_themselves_are_allowed():
    check_fields(Config())
    check_fields(with_values(Config(), optim={"learning_rate": 1, "b2": 0}, algo={"epsilon_high": None, "gamma": 1.0}))


def test_every_default_is_within_its_range():
    """Also those of fields that `check_fields` leaves to a table above."""
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(getattr(Config(), section.name)):
            assert isinstance(field.metadata["rules"], Rules), (section.name, field.name)


def test_ranges_in_words():
    assert range_words(Rules()) == ""
    assert range_words(Rules(at_least=0, at_most=1)) == "from 0 to 1"
    assert range_words(Rules(above=0, below=1)) == "above 0 and below 1"
    assert range_words(Rules(at_most=0)) == "at most 0"


@pytest.mark.parametrize(
    "sections, named",
    [
        ({"policy": {"source": "runs/sft", "preset": "quickstart"}}, "policy.preset=quickstart is not read: it "
         "belongs to policy.source random, and that is 'runs/sft'"),
        ({"algo": {"beta": 0.0, "kl_estimator": "k1"}}, "algo.kl_estimator=k1 is not read: it belongs to algo.beta"),
        (
            {"algo": {"importance_sampling_mode": "off", "importance_sampling_clip_max": 2.0}},
            "importance_sampling_clip_max=2.0 is not read",
        ),
        ({"optim": {"schedule_steps": 50}}, "optim.schedule_steps=50 is not read: it belongs to optim.schedule"),
        ({"reward": {"gate_penalty": 0.7}}, "reward.gate_penalty=0.7 is not read"),
        ({"reward": {"similarity_floor": 0.3}}, "reward.similarity_floor=0.3 is not read"),
        ({"lora": {"alpha": 8.0}}, "lora.alpha=8.0 is not read: it belongs to lora.rank, and that is 0"),
        ({"guard": {"max_beta": 2.0}}, "guard.max_beta=2.0 is not read"),
        ({"sft": {"translator": "nllb"}}, "sft.translator=nllb is not read: it belongs to sft.source translated"),
        ({"sft": {"path": "x.jsonl"}}, "sft.path=x.jsonl is not read: it belongs to sft.source file or samples"),
        ({"sft": {"source": "file", "min_reward": 0.7}}, "sft.min_reward=0.7 is not read: it belongs to sft.source"),
    ],
)  # fmt: skip
def test_what_a_switch_turns_off_is_named(sections, named):
    (found,) = unread_fields(with_values(Config(), **sections))
    assert named in found


def test_what_is_read_is_not_named():
    assert unread_fields(Config()) == []
    config = with_values(
        Config(), policy={"preset": "quickstart"}, algo={"kl_estimator": "k1"}, lora={"rank": 4, "alpha": 8.0},
        optim={"schedule": "linear", "schedule_steps": 50}, reward={"similarity": "floor", "similarity_floor": 0.3},
    )  # fmt: skip
    assert unread_fields(config) == []


def test_settings_of_another_verbs_steps_are_named():
    """`pbrl sft --optim.learning-rate` would change nothing."""
    typed = ["--optim.learning-rate", "-1e-5", "--sft.no-packed", "--policy.dtype", "sft"]
    assert unread_sections("sft", typed) == [
        "--optim.* is not read by pbrl sft, which reads --sft.*: it belongs to pbrl train."
    ]
    assert not unread_sections("train", typed)
