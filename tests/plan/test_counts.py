"""What the plan by hand counts, against the shapes of real parameters and moments."""

import math

import jax
import pytest
from tiny_policy import tiny_spec

from pbrl_jax import Config, with_values
from pbrl_jax.models.encoder import init_encoder
from pbrl_jax.models.specs import tiny_encoder
from pbrl_jax.plan.analytic import Sizes, encoder_weights, estimate_step, parameter_count, start_bytes, state_bytes
from pbrl_jax.plan.shapes import Models, policy_shapes
from pbrl_jax.plan.stages import estimate_stage
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.weights.folders import abstract_tree

EXPERTS = {"experts": 4, "experts_per_token": 2}
ONE = Sizes(1, 1, 1)


def arrays(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_layers_without_a_gate_and_encoders_with_one_are_counted_as_they_are():
    """Apertus's feed-forward has two matrices; gte's has three, and no table of positions."""
    apertus = tiny_spec(activation="xielu", width=64, ffn=512, layers=4)
    assert parameter_count(apertus) == pytest.approx(arrays(policy_shapes(apertus)), rel=0.01)
    gte = tiny_encoder(width=64, ffn=256, layers=4, max_positions=8192, gated=True, rope_theta=1e4)
    assert encoder_weights(gte)[1] == pytest.approx(arrays(abstract_tree(init_encoder, gte)), rel=0.03)


def test_muon_has_one_moment_of_a_matrix():
    for spec in (tiny_spec(width=64, ffn=256, layers=4), tiny_spec(width=64, ffn=64, layers=4, **EXPERTS)):
        config, models = with_values(Config(), optim={"optimizer": "muon"}), Models(spec, tiny_encoder())
        state = jax.eval_shape(make_optimizer(config.optim).init, policy_shapes(spec))
        assert state_bytes(config, models, ONE)[1] == pytest.approx(4 * arrays(state), rel=0.02)
        assert estimate_stage(config, models, ONE, "sft") == estimate_stage(
            with_values(config, optim={"optimizer": "adamw"}), models, ONE, "sft"
        )


def test_experts_beside_adapters_are_not_quantised():
    """As frozen_params leaves them: two bytes each, whatever lora.quantization says."""
    spec = tiny_spec(width=64, ffn=256, layers=4, dtype="bfloat16", **EXPERTS)
    config = with_values(Config(), policy={"dtype": "bfloat16"}, lora={"rank": 4, "quantization": "nf4",
                         "targets": ("query", "key", "value", "out"), "tile_size": 64})  # fmt: skip
    experts = 4 * 4 * 3 * 64 * 256
    assert start_bytes(config, spec) > 2 * experts


def test_a_device_decodes_whole_slots():
    models = Models(tiny_spec(), tiny_encoder())
    seven, eight = (with_values(Config(), rollout={"slots": slots}) for slots in (7, 8))
    needs = [estimate_step(config, models, Sizes(1, 4, 1))["generate"].hbm_bytes for config in (seven, eight)]
    assert needs[0] == needs[1]
