"""The steps of `pbrl sft`, `pbrl dpo` and `pbrl encoder`, in microbatches and on several devices: what the whole batch
gives on one device, for a share of the work."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from tiny_policy import (
    largest_difference,
    leaf_differences,
    quick_compiles,  # noqa: F401
    tiny_params,
    tiny_prompts,
    tiny_rollout,
    tiny_spec,
)

from pbrl_jax import ContrastiveConfig, DpoConfig, MeshConfig, SftConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.mesh.rows import check_rows
from pbrl_jax.mesh.sharding import batch_sharding, make_mesh
from pbrl_jax.models.decoder import decoder_axes
from pbrl_jax.models.encoder import encoder_axes, init_encoder
from pbrl_jax.models.specs import tiny_encoder
from pbrl_jax.plan.hlo import program_cost
from pbrl_jax.train.contrastive import ContrastiveBatch, contrastive_optimizer_config, make_contrastive_step
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.preferences import dpo_optimizer_config, make_dpo_step
from pbrl_jax.train.sft import SftBatch, make_sft_step, sft_optimizer_config
from pbrl_jax.train.sft_packing import pack_rows
from pbrl_jax.train.staged import shared_step
from pbrl_jax.train.state import place_state

# In float64: Adam makes a step of the rounding of a gradient that is zero, as that of a key's bias is.
SPEC = tiny_spec(vocab_size=64, layers=1, dtype="float64")
ENCODER = tiny_encoder(vocab_size=64, width=16, dtype="float64")
LENGTHS, PROMPTS = (6, 1, 4, 3, 6, 2, 5, 1), (5, 2, 4, 3, 1, 5, 2, 4)
OPTIM = {"steps": 8, "warmup_steps": 1, "learning_rate": 1e-2}
TOLERANCE = 1e-9


class Case(NamedTuple):
    """What a stage's step is made of. `step(microbatch)` makes it; `more` are its arguments behind the batch."""

    step: Callable[[int], Any]
    optimizer: Any
    params: Any
    axes: tuple
    batch: Any
    more: tuple = ()


def sft(packed: bool = False) -> Case:
    optim, rollout = sft_optimizer_config(SftConfig(**OPTIM)), tiny_rollout(SPEC, LENGTHS, 6)
    prompts = tiny_prompts(SPEC, PROMPTS, 5)
    batch: Any = SftBatch(prompts, rollout.tokens_BR, rollout.lengths_B)
    if packed:
        rows = [
            [np.asarray(row[:length]).tolist() for row, length in zip(tokens, lengths, strict=True)]
            for tokens, lengths in ((prompts.tokens_PT, PROMPTS), (rollout.tokens_BR, LENGTHS))
        ]
        batch = pack_rows(*rows, 11, shards=4, microbatch=4)
        assert batch.tokens_XL.shape == (8, 11) and int(batch.used_XM.any(axis=1).sum()) == 6
    step = functools.partial(make_sft_step, SPEC, optim, 16)
    return Case(lambda size: step(microbatch=size), make_optimizer(optim), tiny_params(SPEC), decoder_axes(SPEC), batch)


def dpo() -> Case:
    optim, rollout = DpoConfig(**OPTIM), tiny_rollout(SPEC, (*LENGTHS, *reversed(LENGTHS)), 6)
    batch = SftBatch(tiny_prompts(SPEC, PROMPTS, 5), rollout.tokens_BR, rollout.lengths_B)
    optimizer, frozen = make_optimizer(dpo_optimizer_config(optim)), tiny_params(SPEC, seed=9)
    return Case(
        lambda size: make_dpo_step(SPEC, DpoConfig(**OPTIM, microbatch_size=size), 16), optimizer, tiny_params(SPEC),
        decoder_axes(SPEC), batch, (frozen,),
    )  # fmt: skip


def encoder() -> Case:
    rng, columns = np.random.default_rng(0), []
    for rows, real in ((8, 8), (8, 8), (8, 6)):  # two negatives only fill the array up
        lengths = rng.integers(1, 7, rows) * (np.arange(rows) < real)
        columns += [rng.integers(1, 64, (rows, 6)), np.arange(6)[None] < lengths[:, None]]
    settings = {"steps": 8, "batch_size": 8, "learning_rate": 1e-2}
    params = jax.jit(functools.partial(init_encoder, spec=ENCODER))(jax.random.key(0))
    return Case(
        lambda size: make_contrastive_step(ENCODER, ContrastiveConfig(**settings, microbatch_size=size)),
        make_optimizer(contrastive_optimizer_config(ContrastiveConfig(**settings))), params, encoder_axes(ENCODER),
        ContrastiveBatch(*columns),
    )  # fmt: skip


CASES = {"sft": sft, "sft packed": functools.partial(sft, packed=True), "dpo": dpo, "encoder": encoder}


def after_two_steps(case: Case, mesh, microbatch: int):
    """(parameters after two steps, metrics of the second, floating-point operations of a step on one device)."""
    with jax.enable_x64(True), jax.set_mesh(mesh):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (case.params, case.more))
        case = case._replace(params=wide[0], more=wide[1])
        state = place_state(case.params, case.optimizer, case.axes, mesh)
        step = shared_step(case.step(microbatch), state)
        batch = jax.device_put(case.batch, batch_sharding(mesh))
        compiled = step.lower(state, batch, *case.more).compile()
        for _ in range(2):
            state, metrics = compiled(state, batch, *jax.device_put(case.more, compiled.input_shardings[0][2:]))
        assert jax.tree.leaves(state.params)[0].dtype == np.float64
    assert (int(state.step), int(state.skipped)) == (2, 0)
    return jax.device_get(state.params), jax.device_get(metrics), program_cost(compiled.as_text(), 1).flops


@functools.lru_cache
def alone(name: str):
    case = CASES[name]()
    found = after_two_steps(case, make_mesh(MeshConfig(1), jax.devices()[:1]), 0)
    assert np.median(leaf_differences(found[0], case.params)) > 1e6 * TOLERANCE
    return found


def expect_equal(name: str, found) -> None:
    params, metrics, _ = alone(name)
    assert largest_difference(found[0], params) < TOLERANCE
    for metric, value in metrics.items():
        np.testing.assert_allclose(found[1][metric], value, rtol=1e-9, err_msg=metric)


@pytest.mark.parametrize("name", CASES)
def test_microbatches_give_what_the_whole_batch_gives(name):
    """Rows of other lengths in each: only one division of all sums by all counts does; for the encoder every other row
    of the batch stays a negative."""
    expect_equal(name, after_two_steps(CASES[name](), make_mesh(MeshConfig(1), jax.devices()[:1]), 2))


@pytest.mark.serial
@pytest.mark.parametrize("name", CASES)
def test_four_devices_share_the_work(name):
    """The same parameters, cut over fsdp, and a quarter of the operations on each device: in microbatches an encoder
    computes the forward pass twice, four parts of products for three."""
    found = after_two_steps(CASES[name](), make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4]), 4)
    expect_equal(name, found)
    assert found[2] < 0.28 * (4 / 3 if name == "encoder" else 1) * alone(name)[2]


@pytest.mark.parametrize("rows, microbatch, advice", [
    (10, 0, "--dpo.batch-size 12, or"), (12, 3, "--dpo.batch-size 12 --dpo.microbatch-size 4"),
    (10, 4, "--dpo.batch-size 12 --dpo.microbatch-size 4"), (12, 4, ""), (12, 0, ""),
])  # fmt: skip
def test_a_batch_that_four_devices_cannot_share_is_refused(rows, microbatch, advice, monkeypatch):
    monkeypatch.setattr("pbrl_jax.mesh.rows.row_shards", lambda mesh: 4)
    mesh = make_mesh(MeshConfig(1), jax.devices()[:1])
    with contextlib.nullcontext() if not advice else pytest.raises(ConfigError, match=advice):
        check_rows("dpo", rows, microbatch, mesh)
