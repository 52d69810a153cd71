"""What is not finite: found by the update that makes it, counted, refused as a result."""

import jax.numpy as jnp
import numpy as np
import pytest

from pbrl_jax import MeshConfig, OptimConfig
from pbrl_jax.core.errors import NotFiniteError
from pbrl_jax.core.paths import work_dir
from pbrl_jax.core.records import STATE_FINITE
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.train.finite import check_update, refuse_not_finite
from pbrl_jax.train.optimizer import make_optimizer, make_schedule
from pbrl_jax.train.sft import gradient_metrics, gradient_step
from pbrl_jax.train.staged import Stage, run_stage
from pbrl_jax.train.state import new_state, place_state
from pbrl_jax.train.update import Optimizer, optimizer_step


def one_step(optim: OptimConfig, gradient):
    """(state, metrics) after an update of two ones with this gradient."""
    optimizer = Optimizer(make_optimizer(optim), make_schedule(optim))
    return optimizer_step(new_state({"a": jnp.ones(2)}, optimizer.policy), {"a": jnp.asarray(gradient)}, optimizer)


def test_an_update_tells_what_it_has_made():
    """With an epsilon of 0 a gradient of 0 is divided by 0, although it is finite."""
    state, metrics = one_step(OptimConfig(learning_rate=0.1), [0.0, 1.0])
    assert metrics[STATE_FINITE] and np.isfinite(state.params["a"]).all()
    state, metrics = one_step(OptimConfig(learning_rate=0.1, eps=0.0), [0.0, 1.0])
    assert not metrics[STATE_FINITE] and np.isnan(state.params["a"][0])


def test_a_norm_beyond_float32_is_not_finite():
    """1e20 is finite and its square is not: the second moment would be infinite for good."""
    state, metrics = one_step(OptimConfig(learning_rate=0.1, max_grad_norm=0.0), [1e20, 1.0])
    assert metrics[STATE_FINITE] and state.skipped == 1 and state.params["a"].tolist() == [1, 1]


def test_skipped_updates_are_counted_in_a_row():
    streaks: dict[str, int] = {}
    for norm, count in ((np.nan, 1), (1.0, 0), (np.inf, 1), (np.nan, 2)):
        check_update(3, {"grad_norm": jnp.float32(norm), STATE_FINITE: jnp.bool_(True)}, streaks, limit=3)
        assert streaks == ({"skipped_updates": count} if count else {})
    with pytest.raises(NotFiniteError, match="Step 9: 3 updates in a row .*guard.max_skipped_updates = 3"):
        check_update(9, {"grad_norm": jnp.float32(np.nan)}, streaks, limit=3)
    with pytest.raises(NotFiniteError, match="Step 9: parameters or moments are not finite"):
        check_update(9, {"grad_norm": jnp.float32(1), STATE_FINITE: jnp.bool_(False)}, {}, limit=3)


def test_a_stage_tells_its_learning_rate_and_how_many_updates_were_skipped():
    """Not only skips in a row: each one is a batch that was not learnt. The schedule goes by updates."""
    optim = OptimConfig(learning_rate=0.5, warmup_steps=2)
    optimizer, schedule, told = make_optimizer(optim), make_schedule(optim), []
    state = new_state({"a": jnp.ones(2)}, optimizer)
    for value in (1.0, np.nan, 1.0, 1.0, np.inf, 1.0):
        grads = {"a": jnp.array([value, 1.0])}
        before, state = state, gradient_step(state, grads, optimizer)
        metrics = gradient_metrics(state, grads, schedule)
        told.append((int(metrics["skipped_updates"]), float(metrics["learning_rate"])))
        moved = float(jnp.abs(state.params["a"] - before.params["a"]).max())
        assert moved == pytest.approx(told[-1][1], rel=1e-4), "the rate is that of the update"
    assert told == [(0, 0.0), (1, 0.0), (1, 0.25), (1, 0.5), (2, 0.0), (2, 0.5)]


def test_what_is_not_finite_is_no_result():
    refuse_not_finite({"a": jnp.ones(2), "n": jnp.arange(2)}, "it")
    with pytest.raises(NotFiniteError, match="Step 3 of w holds parameters that are not finite"):
        refuse_not_finite({"a": jnp.ones(2), "b": jnp.array([1, jnp.inf])}, "Step 3 of w")


@pytest.mark.parametrize("eps, gradients, message", [
    (0.0, [[1.0, 1.0]] * 3 + [[0.0, 1.0]] * 3, "Step 4: parameters or moments"),
    (1e-8, [[np.nan, 1.0]] * 6, "Step 3: 3 updates in a row"),
])  # fmt: skip
def test_a_stage_stops_with_its_last_good_checkpoint(tmp_path, eps, gradients, message):
    optimizer = make_optimizer(OptimConfig(learning_rate=0.1, eps=eps, max_grad_norm=0.0, b1=0.0, b2=0.0))

    def step(state, gradient):
        after = gradient_step(state, {"a": gradient}, optimizer)
        return after, {"loss": jnp.float32(0)} | gradient_metrics(after, {"a": gradient})

    work, mesh, stage = work_dir(tmp_path), make_mesh(MeshConfig()), Stage("sft", 6, 2, "some data", max_skipped=3)
    with pytest.raises(NotFiniteError, match=message):
        state = place_state({"a": jnp.ones(2)}, optimizer, (("a", ("none",)),), mesh)
        run_stage(stage, work, mesh, state, step, lambda at: jnp.array(gradients[at]))
    assert [folder.name for folder in work.checkpoints.iterdir()] == ["step_00000002"]
