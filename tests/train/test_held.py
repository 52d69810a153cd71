"""What a run holds on the devices from its start, gradients apart: no copy of the start policy that nothing reads. The
bytes of all live arrays, against a count by hand and against `pbrl plan`."""

import dataclasses
import functools
import gc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import tokenizer

from pbrl_jax import Config, with_values
from pbrl_jax.checkpoint import restore as checkpoint_restore
from pbrl_jax.core.paths import work_dir
from pbrl_jax.core.trees import count_parameters
from pbrl_jax.data.sources.quickstart import Example
from pbrl_jax.mesh.offload import HOST_MEMORY
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.models.decoder import init_decoder
from pbrl_jax.models.lora import projections
from pbrl_jax.models.specs import tiny_decoder, tiny_encoder
from pbrl_jax.plan.analytic import Sizes, adapter_count, encoder_weights, resident
from pbrl_jax.plan.shapes import Models
from pbrl_jax.plan.stages import as_update
from pbrl_jax.rollout.weights import decoding_params
from pbrl_jax.run import dpo, sft
from pbrl_jax.train import loop
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.train.staged import Stage, run_stage
from pbrl_jax.train.state import place_state
from pbrl_jax.weights.folders import abstract_tree
from pbrl_jax.weights.policies import Policy, StartPolicy

LORA = {"rank": 4, "tile_size": 64}
REFERENCE, ADAPTERS, NF4 = {"algo": {"beta": 0.1}}, {"lora": LORA}, {"lora": {**LORA, "quantization": "nf4"}}


class Held(NamedTuple):
    """Bytes per parameter: of all, of the projections' kernels beyond that, of adapters; and in the host's memory."""

    each: float
    kernels: float = 0.0
    adapters: float = 0.0
    host: float = 0.0


PATHS: dict[str, tuple[dict[str, Any], Held]] = {
    "full": ({}, Held(12)),
    "full, reference": (REFERENCE, Held(14)),
    "full, reference in float32": ({**REFERENCE, "train": {"frozen_dtype": "float32"}}, Held(16)),
    "full, offloaded reference": ({**REFERENCE, "train": {"offload": ("reference",)}}, Held(12, host=2)),
    "full, offloaded moments": ({"train": {"offload": ("optimizer",)}}, Held(4, host=8)),
    "full, a reward that asks": ({"reward": {"functions": ("implicit",)}}, Held(14)),
    "adapters": (ADAPTERS, Held(2, adapters=12)),
    "adapters, reference": ({**ADAPTERS, **REFERENCE}, Held(2, adapters=12)),
    "adapters, a reward that asks": ({**ADAPTERS, "reward": {"functions": ("implicit",)}}, Held(2, adapters=12)),
    "adapters beside nf4": (NF4, Held(2, kernels=0.53 - 2, adapters=12)),
}


@pytest.fixture(autouse=True, scope="module")
def old_objects_are_left_alone():
    """A collection looks at what this file has made: at all that a long process holds, it would take seconds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def spec_of(config: Config):
    return tiny_decoder(
        vocab_size=tokenizer().vocab_size, width=64, ffn=192, head_dim=32, layers=3, dtype=config.policy.dtype
    )


def config_of(**sections) -> Config:
    base = with_values(
        Config(), algo={"beta": 0.0}, policy={"dtype": "bfloat16"}, mesh={"data": 1}, log={"tensorboard": False},
        rollout={"max_prompt_length": 16, "max_completion_length": 16}, sft={"batch_size": 2}, dpo={"batch_size": 2},
    )  # fmt: skip
    return with_values(base, **sections)


@functools.cache
def init_of(spec):
    return jax.jit(functools.partial(init_decoder, spec=spec))


def start_policy(config: Config) -> StartPolicy:
    make = functools.partial(init_of(spec_of(config)), jax.random.key(0))
    return StartPolicy.of(Policy(spec_of(config), make(), tokenizer(), "random"), make)


def live() -> tuple[float, float]:
    """Bytes of all live arrays in (device, host) memory, memory that arrays share once. Two values of four bits are a
    byte, as accelerators hold them; this platform spends a byte on each."""
    gc.collect()
    sizes: dict[tuple[bool, int], float] = {}
    for x in jax.live_arrays():
        size = x.nbytes / (2 if "int4" in str(x.dtype) else 1)
        sizes[x.sharding.memory_kind == HOST_MEMORY, x.unsafe_buffer_pointer()] = size
    return tuple(sum(size for (host, _), size in sizes.items() if host == wanted) for wanted in (False, True))


def expect(config: Config, found: tuple[float, float], held: Held, planned: Config) -> None:
    """By hand within 5 %, by the plan within 10 %."""
    spec = spec_of(config)
    shapes = abstract_tree(init_decoder, spec)
    everything, adapters = count_parameters(shapes), adapter_count(config, spec)
    names = {path[-1] for path in projections(spec, config.lora.targets)}
    kernels = everything - spec.vocab_size * spec.width * (1 if spec.tied_embeddings else 2)
    assert names and 0.3 < kernels / everything < 0.95
    by_hand = held.each * everything + held.kernels * kernels + held.adapters * adapters
    assert found[0] == pytest.approx(by_hand, rel=0.05)
    assert found[1] == pytest.approx(held.host * everything, rel=0.05, abs=64)
    models = Models(spec, tiny_encoder())
    plan = resident(planned, models, Sizes(1, 1, 1)) - 4 * encoder_weights(models.encoder)[1]
    assert found[0] == pytest.approx(plan, rel=0.1)


def measured(monkeypatch, before, module, name: str, result) -> dict:
    """Live bytes beyond `before` when `module.name` is called in place of which `result(*arguments)` is returned."""
    seen: dict[str, Any] = {}

    def spy(*arguments):
        seen["bytes"] = tuple(now - was for now, was in zip(live(), before, strict=True))
        seen["arguments"] = arguments
        return result(*arguments)

    monkeypatch.setattr(module, name, spy)
    return seen


def run(config: Config, folder, monkeypatch, steps: int = 0):
    """`train` up to its first step; then, with `steps`, the position is said to be there."""
    before = live()
    nothing: dict[str, Any] = dict.fromkeys(set(Experiment._fields) - {"config", "mesh", "policy", "work"})
    experiment = Experiment(
        config=config, work=work_dir(folder), mesh=make_mesh(config.mesh), policy=start_policy(config),
        **nothing | {"fingerprints": {}},
    )  # fmt: skip
    monkeypatch.setattr(loop, "hosted_functions", lambda asking: asking.policy)  # holds what the rewards ask

    def stop(progress, _bar):
        progress.position = progress.position._replace(step=steps, cursor={"batch": 0})
        progress.save()
        return progress.position

    seen = measured(monkeypatch, before, loop, "run_steps", stop)
    loop.train(experiment, quiet=True)
    return seen, experiment


@pytest.mark.parametrize("name", PATHS)
def test_a_run_holds_what_it_trains_and_what_it_reads(name, tmp_path, monkeypatch):
    sections, held = PATHS[name]
    config = config_of(**sections)
    seen, experiment = run(config, tmp_path / "run", monkeypatch)
    expect(config, seen["bytes"], held, config)
    again = experiment.policy.params["embed"]  # loaded anew where it is asked for
    assert again.dtype == jnp.float32 and not again.is_deleted()


def test_with_a_copy_to_sample_from(tmp_path, monkeypatch):
    """The compute type's copy of the matrices, made once a rollout: two bytes more a parameter."""
    config = config_of()
    seen, _ = run(config, tmp_path / "run", monkeypatch)
    before, state = live(), seen["arguments"][0].position.state
    copy = jax.jit(functools.partial(decoding_params, spec=spec_of(config)))(state.params)
    each = (seen["bytes"][0] + live()[0] - before[0]) / count_parameters(copy)
    assert each == pytest.approx(14, rel=0.05)


def test_a_run_that_goes_on_holds_no_fresh_state(tmp_path, monkeypatch, capsys):
    config = config_of()
    run(config, tmp_path / "run", monkeypatch, steps=1)
    seen, _ = run(config, tmp_path / "run", monkeypatch, steps=1)
    assert "Resuming from step_00000001" in capsys.readouterr().out
    expect(config, seen["bytes"], Held(12), config)


def test_a_restore_reads_into_memory_that_the_start_policy_has_left(tmp_path, monkeypatch):
    """It builds from shapes: no fresh state, and no policy where nothing reads it beside the state."""
    config, seen = config_of(), []
    run(config, tmp_path / "run", monkeypatch, steps=1)
    before = live()[0]
    read = checkpoint_restore._read_arrays

    def spy(*arguments):
        seen.append(live()[0] - before)
        return read(*arguments)

    monkeypatch.setattr(checkpoint_restore, "_read_arrays", spy)
    run(config, tmp_path / "run", monkeypatch, steps=1)
    assert seen == pytest.approx([0], abs=4096)


STAGES = {
    "sft": ("sft", {}, Held(12)), "sft, adapters": ("sft", ADAPTERS, Held(2, adapters=12)),
    "dpo": ("dpo", {}, Held(14)), "dpo, adapters": ("dpo", ADAPTERS, Held(2, adapters=12)),
}  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_a_supervised_stage_holds_no_more(name, tmp_path, monkeypatch):
    verb, sections, held = STAGES[name]
    config, module = config_of(**sections), {"sft": sft, "dpo": dpo}[verb]
    before, work, mesh = live(), work_dir(tmp_path), make_mesh(config.mesh)
    policy = start_policy(config)
    seen = measured(monkeypatch, before, module, "run_stage", lambda *arguments: arguments[3])
    if verb == "sft":
        sft.train_supervised(config, work, policy, mesh, rows=[Example("en", "2 + 2?", "The answer is 4.")] * 4)
    else:
        dpo.train_preferences(config, work, policy, mesh, [([5, 6], [7, 8], [9])] * 4)
    expect(config, seen["bytes"], held, as_update(config, verb))


def test_a_stage_that_goes_on_holds_no_fresh_state(tmp_path):
    """What is restored takes the place of the state that the stage began with, although its caller still names it."""
    work, mesh, seen = work_dir(tmp_path), make_mesh(config_of().mesh), []

    def step(state, batch):
        return dataclasses.replace(state, step=state.step + batch[0]), {"loss": state.params["a"].sum()}

    def batch(_) -> jax.Array:
        seen.append(live()[0])
        return jnp.ones(1, jnp.int32)

    before = live()[0]
    for steps in (1, 2):
        state = place_state({"a": jnp.ones(1000)}, optax.sgd(0.1), (("a", ("none",)),), mesh)
        stage = Stage("sft", steps, 200, "print")
        last = run_stage(stage, work, mesh, state, step, batch)
        assert int(last.step) == steps
        del last
    assert [size - before for size in seen] == pytest.approx([4000, 4000], abs=64)


def test_a_stage_goes_on_where_the_file_of_its_pairs_has_moved(tmp_path, monkeypatch):
    """The pairs are in its fingerprint, and not their path; a checkpoint of before, with the path, is gone on with."""
    stages, pairs = [], [([5, 6], [7, 8], [9])] * 4
    monkeypatch.setattr(dpo, "run_stage", lambda stage, *given: stages.append(stage) or given[2])
    for path in ("", "here.jsonl", "there.jsonl"):
        config = config_of(dpo={"path": path})
        dpo.train_preferences(config, work_dir(tmp_path), start_policy(config), make_mesh(config.mesh), pairs)
    assert len({stage.fingerprint for stage in stages}) == 1
    assert stages[0].fingerprint == stages[0].earlier and len({stage.earlier for stage in stages}) == 3

    def step(state, _batch):
        return dataclasses.replace(state, step=state.step + 1), {"loss": jnp.float32(0)}

    mesh, axes = make_mesh(config_of().mesh), (("a", ("none",)),)
    for stage in (Stage("dpo", 1, 200, stages[1].earlier), Stage("dpo", 2, 200, "now", earlier=stages[1].earlier)):
        state = place_state({"a": jnp.ones(3)}, optax.sgd(0.1), axes, mesh)
        last = run_stage(stage, work_dir(tmp_path / "w"), mesh, state, step, lambda at: jnp.zeros(1))
        assert int(last.step) == stage.steps
