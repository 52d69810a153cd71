"""Adapters through the update, the main loop and the supervised stages: what is trained, saved, and left behind."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import (
    largest_difference,
    quick_compiles,  # noqa: F401
    tiny_batch,
    tiny_config,
    tiny_params,
    tiny_spec,
)

from configs.tiny_cpu import get_config
from pbrl_jax import LoraConfig, with_values
from pbrl_jax.checkpoint import list_checkpoints, params_sha256, restore_checkpoint
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import work_dir
from pbrl_jax.models.lora import init_adapters, join_adapters, merge_adapters
from pbrl_jax.run.assemble import build_experiment
from pbrl_jax.run.check import validate
from pbrl_jax.train import loop
from pbrl_jax.train.hosted import decoding_policy
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.programs import update_context
from pbrl_jax.train.start import frozen_of
from pbrl_jax.train.state import abstract_state, new_state
from pbrl_jax.train.trained import Frozen, Trained
from pbrl_jax.train.update import Targets, gradient_sums, loss_mask

SPEC = tiny_spec()
LORA = {"rank": 2, "alpha": 4.0}


def test_the_gradient_is_that_of_the_adapters_alone():
    """In float64: d loss / d a through the merged weights, by the chain rule from their gradient G: scale * G b^T."""
    config = tiny_config(3, 6, algo={"beta": 0.1}, log={"entropy": False}, train={"logprob_chunk": 64}, lora=LORA)
    full = with_values(config, lora={"rank": 0})
    with jax.enable_x64(True):
        spec = tiny_spec(dtype="float64")
        batch = tiny_batch(spec, (5, 2), 5, (6, 1, 4, 2, 2, 3), 6)
        base = tiny_params(spec, dtype=np.float64)
        fresh = init_adapters(jax.random.key(0), base, spec, config.lora)
        rng = np.random.default_rng(0)
        adapters = jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape)), fresh)
        rows = batch, Targets(jnp.asarray(rng.normal(size=6)), loss_mask(batch, config))

        def gradient(trained, frozen, config):
            of = functools.partial(gradient_sums, context=update_context(spec, config))
            return jax.jit(of)(Trained(trained), frozen, None, rows)[0].policy

        found = gradient(adapters, Frozen(base, base), config)
        grads = gradient(merge_adapters(base, adapters, config.lora), Frozen(base), full)
        assert jax.tree.structure(found) == jax.tree.structure(adapters)
        for name in ("query", "key", "value"):
            outer, part = grads["layers"][name]["kernel"], adapters["layers"][name]
            np.testing.assert_allclose(
                found["layers"][name]["lora_a"], 2 * jnp.einsum("ndhc,nrhc->ndr", outer, part["lora_b"]), atol=1e-10
            )
            np.testing.assert_allclose(
                found["layers"][name]["lora_b"], 2 * jnp.einsum("ndhc,ndr->nrhc", outer, part["lora_a"]), atol=1e-10
            )


def base_of(experiment):
    """The frozen weights beside a run's adapters."""
    return frozen_of(experiment.policy, experiment.config, experiment.mesh).base


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(experiment, last position, rows) of a run that trains adapters beside kernels in four bits."""
    config = with_values(
        get_config(), data={"limit": 4}, log={"tensorboard": False}, reward={"language_gate": "off"},
        train={"max_steps": 2, "save_steps": 50, "packed": False}, optim={"learning_rate": 0.02},
        lora={**LORA, "quantization": "nf4", "tile_size": 16},
    )  # fmt: skip
    experiment = build_experiment(config, work_dir(tmp_path_factory.mktemp("lora") / "run"))
    position = loop.train(experiment)
    return experiment, position, [json.loads(line) for line in experiment.work.metrics.read_text().splitlines()]


def test_the_state_holds_adapters_and_the_reference_is_the_same_weights(trained):
    experiment, position, rows = trained
    leaves = len(jax.tree.leaves(position.state.params))
    assert position.state.params.keys() == {"layers"} and leaves == 14
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6) and rows[1]["kl"] > 1e-4
    (_, folder), *_ = list_checkpoints(experiment.work.checkpoints)
    saved = restore_checkpoint(folder, {"state": abstract_state(position.state), "batch": None}).tree["state"]
    assert largest_difference(saved.params, position.state.params) == 0


def test_the_policy_that_is_left_has_no_adapters(trained):
    """Merged into the kernels as they were trained beside: those in four bits made wide."""
    experiment, position, _ = trained
    policy, base = loop.trained_policy(experiment, position), base_of(experiment)
    assert jax.tree.structure(policy.params) == jax.tree.structure(experiment.policy.params)
    final = json.loads(experiment.work.final.read_text())
    assert final["params_sha256"] == params_sha256(policy.params)
    tokens = jnp.arange(8)[None] + 5
    logits = jax.jit(lambda params: experiment.policy.logits(params, tokens, jnp.ones(tokens.shape, bool)))
    both = join_adapters(base, position.state.params, experiment.config.lora)
    np.testing.assert_allclose(logits(policy.params), logits(both), atol=1e-4)
    assert np.array_equal(policy.params["embed"], experiment.policy.params["embed"])


def test_a_server_is_sent_the_weights_with_the_adapters_in_them(trained):
    experiment, position, _ = trained
    config = with_values(experiment.config, rollout={"engine": "vllm"})
    sent = decoding_policy(position.state, Frozen(base=base_of(experiment)), config)
    left = loop.trained_policy(experiment, position).params
    assert jax.tree.structure(sent) == jax.tree.structure(left) and largest_difference(sent, left) < 1e-6


def test_a_state_of_adapters_is_small():
    params = tiny_params(SPEC)
    adapters = init_adapters(jax.random.key(0), params, SPEC, LoraConfig(rank=1))
    moments = new_state(adapters, make_optimizer(get_config().optim))
    count = sum(x.size for x in jax.tree.leaves(moments))
    assert count < sum(x.size for x in jax.tree.leaves(params)) / 2


@pytest.mark.parametrize(
    "lora, message",
    [
        ({"rank": 2, "targets": ("query", "keys")}, "expected some of query, key"),
        ({"quantization": "nf4"}, "nothing would be trained"),
        ({"rank": 2, "quantization": "fp4"}, "lora.quantization is 'fp4'"),
    ],
)
def test_settings_that_cannot_work(lora, message):
    with pytest.raises(ConfigError, match=message):
        validate(with_values(get_config(), lora=lora), 1)
