"""Lengths beyond the positions that a model was made for: refused before anything runs."""

import json

import pytest
from tiny_world import policy

from pbrl_jax import Config, with_values
from pbrl_jax.core.errors import CheckpointError, ConfigError
from pbrl_jax.eval.harness import PolicyRequests
from pbrl_jax.run.assemble import check_positions
from pbrl_jax.weights.hf_decoder import kept_fields

SMALL = policy()._replace(kept={"max_position_embeddings": 128})


@pytest.mark.parametrize(
    "sections, fits",
    [
        ({"rollout": {"max_prompt_length": 64, "max_completion_length": 64}}, True),
        ({"rollout": {"max_prompt_length": 64, "max_completion_length": 65}}, False),
        ({"eval": {"max_prompt_length": 100}}, False),
        ({"pivot": {"max_completion_length": 256}}, True),
        ({"pivot": {"source": "policy", "max_completion_length": 256}}, False),
    ],
)
def test_lengths_of_a_run(sections, fits):
    base = with_values(Config(), rollout={"max_prompt_length": 64, "max_completion_length": 64})
    config = with_values(base, **sections)
    check_positions(config, policy())
    if fits:
        check_positions(config, SMALL)
    else:
        with pytest.raises(ConfigError, match="more than the 128 positions.*These are rollout.max_prompt_length"):
            check_positions(config, SMALL)


def test_lengths_of_the_harness():
    PolicyRequests(SMALL, max_length=128)
    with pytest.raises(ConfigError, match="--max-length is 129, but .* 128 positions .*Use --max-length 128"):
        PolicyRequests(SMALL, max_length=129)


@pytest.mark.parametrize("value", [0, -1, "4096", 1.5, True, [4096]])
def test_positions_that_are_no_number(value):
    config = json.loads(json.dumps({"model_type": "qwen3", "max_position_embeddings": value}))
    with pytest.raises(CheckpointError, match="max_position_embeddings is .*; expected an integer of at least 1"):
        kept_fields(config)
