"""Moments and reference in the host's memory change nothing but where they lie."""

import jax
import pytest
from tiny_policy import largest_difference, quick_compiles, tiny_batch, tiny_config, tiny_params, tiny_spec  # noqa: F401

from pbrl_jax import MeshConfig, with_values
from pbrl_jax.mesh.offload import HOST_MEMORY, in_host_memory
from pbrl_jax.mesh.sharding import make_mesh, tree_shardings
from pbrl_jax.models.decoder import decoder_axes
from pbrl_jax.train.hosted import with_fetched_moments
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.programs import make_update
from pbrl_jax.train.state import place_state

SPEC = tiny_spec(layers=1)
G, R = 2, 5
CONFIG = tiny_config(G, R, algo={"beta": 0.2}, optim={"learning_rate": 1e-2}, train={"microbatch_prompts": 1})


def updated(offload: tuple[str, ...]):
    """The state after two updates, and one metric; offloaded moments are fetched inside the first update's program, as
    the fused step does, and outside of the second's."""
    config = with_values(CONFIG, train={"offload": offload})
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer, axes = make_optimizer(config.optim), decoder_axes(SPEC)
    state = place_state(tiny_params(SPEC), optimizer, axes, mesh, offload="optimizer" in offload)
    shardings = tree_shardings(tiny_params(SPEC), axes, mesh)
    reference = tiny_params(SPEC, seed=5)
    reference = jax.device_put(reference, in_host_memory(shardings) if "reference" in offload else shardings)
    update = make_update(SPEC, config)
    with jax.set_mesh(mesh):
        for run in (update, with_fetched_moments(update)):
            state, metrics = run(state, reference, tiny_batch(SPEC, (4, 3), 4, (5, 2, 3, 5), R))
    return state, metrics["kl"]


@pytest.fixture(scope="module")
def usual():
    return updated(())


def test_the_same_update_from_the_hosts_memory(usual):
    state, kl = updated(("optimizer", "reference"))
    assert kl > 0.01 and kl == pytest.approx(float(usual[1]), rel=1e-5)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert moments and {leaf.sharding.memory_kind for leaf in moments} == {HOST_MEMORY}
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.params)} == {"device"}
    assert largest_difference(jax.device_get(state), jax.device_get(usual[0])) < 1e-6
    assert largest_difference(jax.device_get(state.params), tiny_params(SPEC)) > 1e-3
