"""Every loss on eight virtual devices, in microbatches and below a group: the gradient of one device, in float64."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table_policy import CONFIG, G, P, R, batch_of, keep_gradient, table, table_outputs
from tiny_policy import quick_compiles, tiny_spec  # noqa: F401  the first is a fixture

from pbrl_jax import MeshConfig, with_values
from pbrl_jax.algos import losses
from pbrl_jax.mesh.sharding import batch_sharding, make_mesh, replicated
from pbrl_jax.train import programs, update
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.programs import update_step
from pbrl_jax.train.state import new_state

pytestmark = pytest.mark.serial
COPIES = 8
LOSSES = {name: {"loss_type": name, **({"epsilon_high": 1.02} if name == "cispo" else {})} for name in losses.LOSSES}
#: Mesh (data, fsdp, tensor), and settings of its microbatches of 32 groups of three: 1, 2 and 4 of them, one per prompt
#: group, and single samples.
CASES = {
    "whole": ((8, 1, 1), {}),
    "two": ((4, 2, 1), {"microbatch_prompts": 16}),
    "four": ((8, 1, 1), {"microbatch_prompts": 8}),
    "one per group": ((1, 1, 8), {"microbatch_prompts": 1}),
    "below a group": ((8, 1, 1), {"microbatch_prompts": 16, "microbatch_samples": 1}),
}


@pytest.fixture(autouse=True)
def table_policy(monkeypatch):
    for module in (update, programs):
        monkeypatch.setattr(module, "row_outputs", table_outputs)
    monkeypatch.setattr(update, "optimizer_step", keep_gradient)
    with jax.enable_x64(True):
        yield


def gradients(state, ref_params, batch, train):
    """Loss type -> gradient; all in one program."""
    found = {}
    for name, algo in LOSSES.items():
        config = with_values(CONFIG, algo=algo, train=train)
        new, _ = update_step(state, ref_params, batch, spec=tiny_spec(), config=config)
        found[name] = new.params["table"]
    return found


def inputs():
    """Eight copies of a ragged batch, with rewards of their own: 32 groups."""
    batch = jax.tree.map(lambda x: jnp.concatenate([x] * COPIES), batch_of())
    noise = 0.1 * np.random.default_rng(8).normal(size=COPIES * P * G)
    return new_state(table(0), make_optimizer(CONFIG.optim)), table(1), replace(batch, reward_B=batch.reward_B + noise)


@pytest.fixture(scope="module")
def alone():
    """One device, the whole batch at once."""
    made = {}

    def of():
        if not made:
            made.update(jax.jit(functools.partial(gradients, train={}))(*inputs()))
        return made

    return of


@pytest.mark.parametrize("name", CASES)
def test_every_loss_has_the_gradient_of_one_device(name, alone):
    sizes, train = CASES[name]
    expected = alone()
    state, ref_params, batch = inputs()
    mesh = make_mesh(MeshConfig(*sizes))
    assert mesh.size == 8 and batch.rollout.tokens_BR.shape == (COPIES * P * G, R)
    with jax.set_mesh(mesh):
        state, ref_params = jax.device_put((state, ref_params), replicated(mesh))
        batch = jax.device_put(batch, batch_sharding(mesh))
        found = jax.jit(functools.partial(gradients, train=train))(state, ref_params, batch)
    for loss_type, gradient in found.items():
        assert gradient.dtype == jnp.float64 and np.abs(gradient).max() > 1e-4
        np.testing.assert_allclose(gradient, expected[loss_type], rtol=0, atol=1e-10, err_msg=loss_type)
