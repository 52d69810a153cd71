"""Eight virtual devices compute what one computes: rollout and update on several meshes."""

import contextlib
import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import (
    compilations,
    largest_difference,
    leaf_differences,
    quick_compiles,  # noqa: F401
    tiny_batch,
    tiny_config,
    tiny_params,
    tiny_spec,
)
from tiny_world import canonical_responses, encoder

from pbrl_jax import MeshConfig, OptimConfig, with_values
from pbrl_jax.core.records import TrainBatch
from pbrl_jax.mesh.sharding import batch_sharding, make_mesh, replicated, tree_shardings
from pbrl_jax.models.decode_attention import Form, decode_attention, written_rows
from pbrl_jax.models.decoder import decoder_axes
from pbrl_jax.models.logprobs import chunked_logprobs
from pbrl_jax.models.packing import Bucket, fits
from pbrl_jax.plan.hlo import program_cost
from pbrl_jax.plan.shapes import add_shardings
from pbrl_jax.rollout.generate import generate_samples, prefill
from pbrl_jax.rollout.refill import make_programs
from pbrl_jax.rollout.sampling import row_keys, sampling_params, step_key
from pbrl_jax.rollout.weights import decoding_params
from pbrl_jax.train.microbatches import Packing, plan_microbatches
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.packed import PackedUpdate, make_targets
from pbrl_jax.train.programs import make_update
from pbrl_jax.train.sft import gradient_step
from pbrl_jax.train.state import abstract_state, new_state, place_state, state_shardings
from pbrl_jax.train.trained import Frozen
from pbrl_jax.weights.encoders import embed_block, over_devices, row_sharding

pytestmark = pytest.mark.serial


class Case(NamedTuple):
    sizes: tuple[int, int, int]
    microbatch: int
    packed: bool
    unstacked: bool


SPEC = tiny_spec(vocab_size=64)
P, G, R = 8, 2, 12
LENGTHS = (1, 12, 5, 7, 12, 2, 3, 3, 8, 1, 6, 6, 4, 9, 2, 10)
OPTIM = dataclasses.asdict(OptimConfig(learning_rate=1e-2, eps=1e-2, weight_decay=0.1))
CONFIG = tiny_config(G, R, algo={"beta": 0.0}, optim=OPTIM, log={"entropy": False}, train={"logprob_chunk": 64})
TOLERANCE = 1e-6
SAMPLING = sampling_params(0.9, 1.0, 0, (4, 9, 13, 21))

#: Mesh sizes (data, fsdp, tensor), and between them what a run may also choose: prompt groups per microbatch, whether
#: the update runs on packed responses, and whether layers are decoded one by one (as in small models) or by a scan.
MESHES = {
    "2x2x2": Case((2, 2, 2), microbatch=4, packed=False, unstacked=False),
    "8x1x1": Case((8, 1, 1), microbatch=0, packed=True, unstacked=True),
    "1x8x1": Case((1, 8, 1), microbatch=0, packed=False, unstacked=True),
    "1x4x2": Case((1, 4, 2), microbatch=0, packed=False, unstacked=True),
}
#: For the update also one whose parts along `data` add up their microbatches apart.
UPDATE_MESHES = MESHES | {"4x1x2": Case((4, 1, 2), microbatch=4, packed=False, unstacked=False)}


@pytest.fixture(autouse=True, scope="module")
def eight_devices():
    if jax.device_count() < 8:
        pytest.skip(f"needs 8 devices, found {jax.device_count()}: PBRL_TEST_DEVICES=8 python -m pytest -m serial")


def the_batch():
    return tiny_batch(SPEC, (5, 2, 4, 3, 1, 5, 2, 4), 5, LENGTHS, R)


def sampler():
    """A program of its own for each mesh: jit's cache does not look at the mesh that `constrain` sees."""
    return jax.jit(functools.partial(generate_samples, spec=SPEC, samples=G, max_length=8))


@pytest.fixture(scope="module")
def alone():
    """(rollout, state, metrics) on one device."""
    params, batch = tiny_params(SPEC), the_batch()
    rollout = sampler()(params, batch.prompts, jax.random.key(3), SAMPLING)
    assert rollout.lengths_B.min() < 4 and rollout.lengths_B.max() == 8
    state, metrics = make_update(SPEC, CONFIG)(new_state(params, make_optimizer(CONFIG.optim)), None, batch)
    assert min(leaf_differences(state.params, tiny_params(SPEC))) > 100 * TOLERANCE
    return jax.tree.map(np.array, (rollout, state, metrics))


@pytest.mark.parametrize("name", MESHES)
def test_rollout_equals_one_device(name, alone):
    mesh = make_mesh(MeshConfig(*MESHES[name].sizes))
    params = jax.device_put(tiny_params(SPEC), tree_shardings(tiny_params(SPEC), decoder_axes(SPEC), mesh))
    prompts = jax.device_put(the_batch().prompts, batch_sharding(mesh))
    with jax.set_mesh(mesh):
        if MESHES[name].unstacked:
            params = jax.jit(functools.partial(decoding_params, spec=SPEC))(params)
            kernel = params["layers"][1]["mlp"]["up"]["kernel"]
            assert kernel.sharding.shard_shape(kernel.shape) == (16, 24 // mesh.shape["tensor"])
        rollout = sampler()(params, prompts, jax.random.key(3), SAMPLING)
    assert len(rollout.tokens_BR.sharding.device_set) == 8
    for field in ("tokens_BR", "lengths_B", "truncated_B"):
        np.testing.assert_array_equal(getattr(rollout, field), getattr(alone[0], field))
    np.testing.assert_allclose(rollout.logp_BR, alone[0].logp_BR, atol=1e-5)


@pytest.mark.parametrize(
    "name, weights",
    [("2x2x2", "whole"), ("8x1x1", "whole"), ("1x4x2", "tensor"), ("2x2x2", "tensor"), ("1x8x1", "tensor"),
     ("1x4x2", "as_trained")],
)  # fmt: skip
def test_refilled_slots_equal_one_device(name, weights, alone):
    """Each device has a slot or two for its own rows, two or four of them; the matrices of products are cut over all
    devices that share them, where weights are `tensor`."""
    mesh = make_mesh(MeshConfig(*MESHES[name].sizes))
    params = jax.device_put(tiny_params(SPEC), tree_shardings(tiny_params(SPEC), decoder_axes(SPEC), mesh))
    prompts = jax.device_put(the_batch().prompts, batch_sharding(mesh))
    with jax.set_mesh(mesh):
        programs = make_programs(SPEC, G, 8, 128, weights, slots=8)
        kernel = programs.programs.lay(params)["layers"][1]["mlp"]["up"]["kernel"]
        rollout = programs.rollout(params, prompts, jax.random.key(3), SAMPLING)
    shares = math.prod(mesh.shape[axis] for axis in (("tensor", "fsdp") if weights == "tensor" else ("tensor",)))
    rows = 16 if weights != "as_trained" else 16 // mesh.shape["fsdp"]
    assert kernel.sharding.shard_shape(kernel.shape) == (rows, 24 // shares)
    assert len(rollout.tokens_BR.sharding.device_set) == 8
    for field in ("tokens_BR", "lengths_B", "truncated_B"):
        np.testing.assert_array_equal(getattr(rollout, field), getattr(alone[0], field))
    np.testing.assert_allclose(rollout.logp_BR, alone[0].logp_BR, atol=1e-5)


def test_eight_bits_equal_one_device():
    """Steps lie with the outputs and heads that they belong to; sums of a product over devices are of whole numbers."""
    spec = dataclasses.replace(SPEC, weight_dtype="int8", kv_dtype="int8")
    params, prompts, key = tiny_params(SPEC), the_batch().prompts, jax.random.key(3)
    expected = make_programs(spec, G, 8, 128).rollout(params, prompts, key, SAMPLING)
    mesh = make_mesh(MeshConfig(1, 4, 2))
    params = jax.device_put(params, tree_shardings(params, decoder_axes(SPEC), mesh))
    with jax.set_mesh(mesh):
        programs = make_programs(spec, G, 8, 128, "tensor", slots=8)
        kernel = programs.programs.lay(params)["layers"][1]["mlp"]["up"]["kernel"]
        found = programs.rollout(params, jax.device_put(prompts, batch_sharding(mesh)), key, SAMPLING)
    assert [x.sharding.shard_shape(x.shape) for x in (kernel.integers, kernel.step)] == [(16, 3), (1, 3)]
    np.testing.assert_array_equal(found.tokens_BR, expected.tokens_BR)
    np.testing.assert_allclose(found.logp_BR, expected.logp_BR, atol=1e-5)


def test_kernels_of_decoding_equal_one_device():
    """Each device computes its own rows and heads."""
    rng, X, K, C, L = np.random.default_rng(0), 8, 2, 16, 256
    sizes = (X, 1, 6, C), (X, K, C, L), (X, K, L, C)
    query, key, value = (rng.normal(size=size).astype(np.float32) for size in sizes)
    place, mesh = np.arange(X, dtype=np.int32) * 30, make_mesh(MeshConfig(2, 2, 2))
    inputs = query, (key, value), place, np.int32(2)
    run = functools.partial(decode_attention, "tpu", form=Form(None, 0.0, 128), interpret=True)
    expected = jax.jit(run)(*inputs)
    with jax.set_mesh(mesh):
        found = jax.jit(lambda *inputs: run(*inputs))(*inputs)
    assert found.sharding.shard_shape(found.shape) == (2, 1, 3, C)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    new = value[:, :, :1].swapaxes(2, 3), value[:, :, :1]
    write = functools.partial(written_rows, interpret=True)
    with jax.set_mesh(mesh):
        written = jax.jit(lambda *inputs: write(*inputs))(place, new, (key, value))
    for one, axis, entry in zip(written, (3, 2), new, strict=True):
        here = np.expand_dims(place, (1, 2, 3)) == np.arange(L).reshape([L if n == axis else 1 for n in range(4)])
        np.testing.assert_array_equal(one, np.where(here, entry, (key, value)[axis == 2]))


@pytest.mark.parametrize("name", UPDATE_MESHES)
def test_update_equals_one_device(name, alone, caplog):
    """One step; then another from its result, which must lie where the first began, so that nothing is compiled."""
    case = UPDATE_MESHES[name]
    mesh = make_mesh(MeshConfig(*case.sizes))
    optimizer = make_optimizer(CONFIG.optim)
    shardings = state_shardings(tiny_params(SPEC), optimizer, decoder_axes(SPEC), mesh)
    state = place_state(tiny_params(SPEC), optimizer, decoder_axes(SPEC), mesh)
    batch = jax.device_put(the_batch(), batch_sharding(mesh))
    bucket = Bucket(1, 16) if case.packed else None
    assert bucket is None or fits(np.array(LENGTHS).reshape(P, G), bucket).all()
    update = make_update(SPEC, with_values(CONFIG, train={"microbatch_prompts": case.microbatch}))
    with jax.set_mesh(mesh):
        state, metrics = update(state, None, batch, bucket=bucket)
        assert largest_difference(state, alone[1]) < TOLERANCE
        for metric, value in alone[2].items():
            np.testing.assert_allclose(metrics[metric], value, rtol=1e-5, atol=1e-6, err_msg=metric)
        stayed = jax.tree.map(lambda leaf, place: leaf.sharding.is_equivalent_to(place, leaf.ndim), state, shardings)
        assert all(jax.tree.leaves(stayed))
        with compilations(caplog) as found:
            state, _ = update(state, None, batch, bucket=bucket)
    assert not [text for text in found if "update_step" in text]
    assert state.step == 2


def test_packed_microbatches_equal_one_device(alone, caplog):
    """Sorted over all devices, half of the groups in a stream of 12 slots; two steps of the same programs."""
    mesh, optimizer = make_mesh(MeshConfig(2, 2, 2)), make_optimizer(CONFIG.optim)
    state, batch = place_state(tiny_params(SPEC), optimizer, decoder_axes(SPEC), mesh), the_batch()
    packing = Packing(4, (Bucket(1, 12), Bucket(1, 16), Bucket(G, R)))
    plan = plan_microbatches(np.array(LENGTHS).reshape(P, G), packing)
    assert [part.bucket.slots for part in plan] == [12, 16]
    with jax.set_mesh(mesh):
        batch = jax.device_put(batch, batch_sharding(mesh))
        update = PackedUpdate(SPEC, CONFIG, packing)
        targets = make_targets(SPEC, CONFIG)(state, Frozen(), batch)
        state, metrics = update(state, Frozen(), batch, targets)
        assert largest_difference(state, alone[1]) < TOLERANCE
        for metric, value in alone[2].items():
            np.testing.assert_allclose(metrics[metric], value, rtol=1e-5, atol=1e-6, err_msg=metric)
        with compilations(caplog) as found:
            update(state, Frozen(), batch, targets)
    assert not found


def run_steps(params, mesh=None, steps=6):
    """(tokens of every step, losses and gradient norms, parameters) of a run: sample, reward made from the tokens,
    update."""
    optimizer, sample, update = make_optimizer(CONFIG.optim), sampler(), make_update(SPEC, CONFIG)
    place = (lambda tree: tree) if mesh is None else functools.partial(jax.device_put, device=batch_sharding(mesh))
    prompts, tokens, losses = place(the_batch().prompts), [], []
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        axes = decoder_axes(SPEC)
        state = new_state(params, optimizer) if mesh is None else place_state(params, optimizer, axes, mesh)
        for step in range(steps):
            rollout = sample(state.params, prompts, step_key(3, step), SAMPLING)
            host = jax.device_get(rollout)
            reward_B = (host.tokens_BR % 7).mean(axis=1, dtype=np.float32)
            batch = TrainBatch(prompts, place(rollout), *place((reward_B, np.ones(P * G, bool))))
            state, metrics = update(state, None, batch)
            tokens.append(host.tokens_BR)
            losses.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.stack(tokens), np.array(losses), jax.device_get(state.params)


@pytest.fixture(scope="module")
def six_steps_alone():
    found = run_steps(tiny_params(SPEC))
    assert min(leaf_differences(found[2], tiny_params(SPEC))) > 100 * 1e-5
    assert len({tokens.tobytes() for tokens in found[0]}) == 6 and found[1][:, 1].min() > 0.01
    return found


@pytest.mark.parametrize("name", MESHES)
def test_six_steps_equal_one_device(name, six_steps_alone):
    """A whole run: the same sampled tokens, losses and parameters, although every step builds on the one before."""
    tokens, losses, params = run_steps(tiny_params(SPEC), make_mesh(MeshConfig(*MESHES[name].sizes)))
    np.testing.assert_array_equal(tokens, six_steps_alone[0])
    np.testing.assert_allclose(losses, six_steps_alone[1], atol=1e-5)
    assert largest_difference(params, six_steps_alone[2]) < 1e-5


def test_muon_on_a_mesh_equals_one_device():
    """Orthogonalising matrices that are cut over eight devices gives the same parameters."""
    optimizer = make_optimizer(OptimConfig(optimizer="muon", learning_rate=0.05))
    params, results = tiny_params(SPEC), []
    grads = jax.tree.map(jnp.cos, params)
    for sizes, devices in (((1, 1, 1), jax.devices()[:1]), ((2, 2, 2), None)):
        mesh = make_mesh(MeshConfig(*sizes), devices)
        state = place_state(params, optimizer, decoder_axes(SPEC), mesh)
        for _ in range(2):
            state = jax.jit(gradient_step, static_argnums=2)(state, grads, optimizer)
        results.append(jax.device_get(state.params))
    assert largest_difference(*results) < 1e-5 and largest_difference(params, results[0]) > 1e-3


def test_the_output_matrix_gets_its_gradient_once():
    """However many chunks of logits are made, the mesh adds up one gradient; each chunk's would be 16 of them."""
    mesh, shapes = make_mesh(MeshConfig(1, 4, 2)), jax.eval_shape(lambda: tiny_params(SPEC))
    params = add_shardings(shapes, tree_shardings(shapes, decoder_axes(SPEC), mesh))
    hidden = jax.ShapeDtypeStruct((P, 16, SPEC.width), jnp.float32, sharding=batch_sharding(mesh))
    tokens = jax.ShapeDtypeStruct((P, 16), jnp.int32, sharding=batch_sharding(mesh))

    def sent(chunk: int) -> dict[str, float]:
        def total(params, hidden, tokens):
            return chunked_logprobs(params, SPEC, hidden, tokens, 1.0, chunk)[0].sum()

        with jax.set_mesh(mesh):
            text = jax.jit(jax.grad(total)).lower(params, hidden, tokens).compile().as_text()
        return program_cost(text).collectives

    few, many = sent(P * 16), sent(P)
    assert few["all-gather"] == many["all-gather"] > 0
    matrix = 4 * SPEC.vocab_size * SPEC.width
    assert many["all-reduce"] < few["all-reduce"] + matrix


def test_an_encoder_shares_its_texts():
    """Whole on each device, which read an eighth of the texts each, to the same vectors."""
    alone, mesh = encoder(), make_mesh(MeshConfig(1, 4, 2))
    shared = over_devices(alone, mesh)
    texts = canonical_responses(3)
    with jax.set_mesh(mesh):
        vectors = shared.embed(texts)
    np.testing.assert_allclose(vectors, alone.embed(texts), atol=1e-5)
    assert embed_block(64, 8) == 256 and embed_block(8192, 48) == 48
    leaf = jax.tree.leaves(shared.params)[0]
    assert leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 8
    assert row_sharding(shared.params).shard_shape((256, 64)) == (32, 64) and row_sharding(alone.params) is None


def test_caches_lie_on_the_mesh():
    """Rows over data and fsdp, heads over tensor: one device holds an eighth of the keys and values."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    params = jax.device_put(tiny_params(SPEC), tree_shardings(tiny_params(SPEC), decoder_axes(SPEC), mesh))
    prompts = jax.device_put(the_batch().prompts, batch_sharding(mesh))
    start = jax.jit(functools.partial(prefill, spec=SPEC, samples=G, max_length=8))
    with jax.set_mesh(mesh):
        keys = row_keys(jax.random.key(3), prompts.row_ids_P, G)
        found = start.lower(params, prompts, keys, SAMPLING).compile().output_shardings
    K, C = SPEC.kv_heads, SPEC.head_dim
    assert len(found.own.layers) == len(found.prompt.layers) == SPEC.layers
    assert {one.key.shard_shape((P * G, K, C, 8)) for one in found.own.layers} == {(P * G // 4, K // 2, C, 8)}
    assert {one.value.shard_shape((P, K, 5, C)) for one in found.prompt.layers} == {(P // 4, K // 2, 5, C)}
    assert found.tokens_BR.shard_shape((P * G, 8)) == (P * G // 4, 8)


def test_state_lies_on_the_mesh():
    """Moments lie where their parameters lie; the caller's parameters are copies and outlive the state."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    params, optimizer = tiny_params(SPEC), make_optimizer(CONFIG.optim)
    state = place_state(params, optimizer, decoder_axes(SPEC), mesh)
    kernel = state.params["layers"]["mlp"]["up"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 16 // 2, 24 // 2)}
    leaves = dict(jax.tree_util.tree_leaves_with_path(state.opt_state))
    moments = [leaf for path, leaf in leaves.items() if "up" in str(path)]
    assert len(moments) == 2 and all(moment.sharding == kernel.sharding for moment in moments)
    assert state.step.sharding.is_equivalent_to(replicated(mesh), 0)
    abstract = abstract_state(state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), abstract) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), state
    )
    jax.tree.map(lambda leaf: leaf.delete(), state)
    assert jnp.isfinite(params["embed"]).all()
