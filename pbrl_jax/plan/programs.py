"""The programs of a step, compiled ahead of time for a mesh of devices that need not be present."""

import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pbrl_jax.config.tree import Config, with_values
from pbrl_jax.core.batching import length_bucket
from pbrl_jax.mesh.sharding import MESH_AXES, batch_sharding, replicated
from pbrl_jax.models.specs import TextEncoderSpec
from pbrl_jax.plan.hlo import Cost, program_cost
from pbrl_jax.plan.holds import update_faults
from pbrl_jax.plan.shapes import (
    Models,
    add_shardings,
    sharded_batch,
    sharded_encoder,
    sharded_frozen,
    sharded_sampler,
    sharded_state,
    tree_bytes,
)
from pbrl_jax.rollout.generate import DecodeState, make_programs, windows
from pbrl_jax.rollout.sampling import row_keys, sampling_params
from pbrl_jax.train.programs import make_update
from pbrl_jax.weights.encoders import embed_block, embed_tokens

#: How the TPU compiler says that a program does not fit.
TOO_LARGE = re.compile(r"total memory required for HLO temporaries \(([\d.]+)([KMGT])\)|Used ([\d.]+)([KMGT]) of")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

#: Ids that end a response, at most: what released models have.
EOS_IDS = (0, 1)


class Need(NamedTuple):
    """Memory of a program of the step on one chip, in bytes, and its cost."""

    #: All memory in use while it runs, including arrays of the other programs.
    hbm_bytes: float
    temp_bytes: float
    cost: Cost
    compile_seconds: float = 0.0
    #: Arrays that the compiled update holds and must not (see plan.holds); None where this was not checked.
    faults: tuple[str, ...] | None = None


class Memory(NamedTuple):
    """Memory of one compiled program on one chip, in bytes."""

    arguments: float
    temporary: float
    #: Results that do not alias arguments.
    results: float

    @property
    def total(self) -> float:
        return self.arguments + self.temporary + self.results


class Compiled(NamedTuple):
    """A compiled program. `token` is the cost of one iteration of a loop whose length depends on data, such as that
    over sampled tokens; `cost` includes one iteration."""

    memory: Memory
    cost: Cost
    token: Cost
    seconds: float
    shardings: object
    #: The optimized HLO.
    text: str


def compile_ahead(mesh: Mesh, program, *shapes, **static) -> Compiled:
    """Compile a jitted function for shapes on a mesh, and read its memory and its cost."""
    start = time.perf_counter()
    with jax.set_mesh(mesh):  # not while compiling: no array can be made on devices that are not present
        lowered = program.lower(*shapes, **static)
    compiled = lowered.compile()
    found = compiled.memory_analysis()
    memory = Memory(
        float(found.argument_size_in_bytes),
        float(found.temp_size_in_bytes + found.generated_code_size_in_bytes),
        float(found.output_size_in_bytes - found.alias_size_in_bytes),
    )
    text = compiled.as_text()
    once, twice = program_cost(text, 1), program_cost(text, 2)
    return Compiled(memory, once, twice.plus(once, -1), time.perf_counter() - start, compiled.output_shardings, text)


def result_shapes(mesh: Mesh, program, compiled: Compiled, *shapes):
    """Shapes of the results of a compiled program, with their shardings."""
    with jax.set_mesh(mesh):
        return add_shardings(jax.eval_shape(program, *shapes), compiled.shardings)


def decode_cost(small: Compiled, large: Compiled, share: float, tokens: int, segment: int) -> Cost:
    """Cost of decoding `tokens` tokens in segments, interpolated at `share` between the windows of two programs.

    What a program does before its loop, such as gathering weights, counts once per segment.
    """
    calls = -(-tokens // segment)

    def all_segments(part: Compiled) -> Cost:
        return Cost().plus(part.cost, calls).plus(part.token, tokens - calls)

    return Cost().plus(all_segments(small), 1 - share).plus(all_segments(large), share)


def generate_need(config: Config, models: Models, mesh: Mesh, other_bytes: float) -> Need:
    """The rollout at full length: prefill, and one decode program per window.

    The smallest and the largest window are compiled and those between interpolated, since only attention depends on
    the window, and linearly.
    """
    spec, G, R = models.policy, config.algo.num_generations, config.rollout.max_completion_length
    params, prompts = sharded_sampler(config, spec, mesh), sharded_batch(config, mesh).prompts
    programs = make_programs(spec, G, R, config.rollout.segment_length, config.rollout.weights)
    laid = compile_ahead(mesh, programs.lay, params)
    params = result_shapes(mesh, programs.lay, laid, params)
    sampling = add_shardings(jax.eval_shape(lambda: sampling_params(1.0, 1.0, 0, EOS_IDS)), replicated(mesh))
    keys = jax.eval_shape(lambda rows: row_keys(jax.random.key(0), rows, G), prompts.row_ids_P)
    keys = add_shardings(keys, batch_sharding(mesh))
    first = compile_ahead(mesh, programs.start, params, prompts, keys, sampling)
    state = result_shapes(mesh, programs.start, first, params, prompts, keys, sampling)
    stop = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))

    def with_window(window: int) -> Compiled:
        return compile_ahead(mesh, programs.segment, params, with_room(state, window), sampling, stop)

    sizes = windows(R)
    large = with_window(sizes[-1])
    small = large if len(sizes) == 1 else with_window(sizes[0])
    cost, filled = first.cost.plus(laid.cost), 1
    for size in sizes:
        share = 0.0 if len(sizes) == 1 else (size - sizes[0]) / (sizes[-1] - sizes[0])
        if size > filled:
            cost = cost.plus(decode_cost(small, large, share, size - filled, config.rollout.segment_length))
        filled = size
    parts: tuple[Compiled, ...] = (first, large, small)
    most = max(parts, key=lambda part: part.memory.total)
    copying = laid.memory.temporary + laid.memory.results
    return Need(
        other_bytes + max(most.memory.total, copying),
        most.memory.temporary,
        cost,
        sum({id(p): p.seconds for p in (*parts, laid)}.values()),
    )


def with_room(state: DecodeState, window: int) -> DecodeState:
    """Shapes of a decoding state whose cache has room for `window` tokens."""

    def sized(part):
        X, K, _, C = part.shape
        return jax.ShapeDtypeStruct((X, K, window, C), part.dtype, sharding=part.sharding)

    return dataclasses.replace(state, own=jax.tree.map(sized, state.own))


def reward_calls(config: Config, rows: int, devices: int = 1) -> tuple[int, int, int]:
    """(calls, texts per call, tokens per text) of the encoder for all responses at full length."""
    size = length_bucket(config.encoder.max_length, config.encoder.max_length)
    pieces = -(-config.rollout.max_completion_length // size) + (config.reward.parts == "split")
    block = embed_block(size, devices)
    return -(-rows * pieces // block), block, size


def reward_need(config: Config, models: Models, mesh: Mesh, other_bytes: float) -> Need:
    """The encoder on all responses: replicated, with the texts divided over the chips."""
    rows = config.train.prompts_per_step * config.algo.num_generations
    calls, block, size = reward_calls(config, rows, mesh.size)
    found = compile_encoder(models.encoder, block, size, mesh)
    held = other_bytes - tree_bytes(sharded_encoder(models.encoder, mesh))
    return Need(held + found.memory.total, found.memory.temporary, Cost().plus(found.cost, calls), found.seconds)


def compile_encoder(spec: TextEncoderSpec, texts: int, tokens: int, mesh: Mesh) -> Compiled:
    """The reward's encoder on all devices of the mesh."""
    rows = Mesh(mesh.devices.reshape(-1, 1, 1), MESH_AXES, axis_types=mesh.axis_types)
    shared = batch_sharding(rows)
    inputs = [jax.ShapeDtypeStruct((texts, tokens), kind, sharding=shared) for kind in (jnp.int32, jnp.bool_)]
    return compile_ahead(rows, embed_tokens(spec), sharded_encoder(spec, rows), *inputs)


def update_need(config: Config, models: Models, mesh: Mesh, other_bytes: float) -> Need:
    """The update of a full-length batch, unpacked, which is its worst case."""
    between = sharded_state(config, models.policy, mesh)
    state = sharded_state(with_values(config, train={"offload": ()}), models.policy, mesh)
    start, batch = sharded_frozen(config, models.policy, mesh), sharded_batch(config, mesh)
    reference, base = start if config.algo.beta > 0 else None, start if config.lora.rank else None
    found = compile_ahead(mesh, make_update(models.policy, config), state, reference, batch, base, bucket=None)
    held = other_bytes - tree_bytes((between, reference, base))
    moments = Cost(host_bytes=2 * (tree_bytes(state) - tree_bytes(between)))  # fetched, and sent back
    cost = Cost().plus(found.cost.plus(moments), config.algo.num_iterations)
    faults = tuple(update_faults(found.text, config, models.policy, dict(mesh.shape)))
    return Need(held + found.memory.total, found.memory.temporary, cost, found.seconds, faults=faults)


def resident_bytes(config: Config, models: Models, mesh: Mesh) -> float:
    """Bytes that stay in a chip's memory: state, reference, the reward's models."""
    reference = sharded_frozen(config, models.policy, mesh)
    state = sharded_state(config, models.policy, mesh)
    return tree_bytes((state, reference, sharded_encoder(models.encoder, mesh))) + models.reward_bytes


Program = TypeVar("Program")
PROGRAMS: dict[str, Callable[[Config, Models, Mesh, float], Need]] = {
    "generate": generate_need,
    "reward": reward_need,
    "update": update_need,
}


def run_here(config: Config, programs: dict[str, Program]) -> dict[str, Program]:
    """Those of a step's programs that run on the chips of the run: a server samples with memory of its own."""
    return {name: program for name, program in programs.items() if name != "generate" or config.rollout.engine == "jax"}


def refused_bytes(error: Exception) -> float | None:
    """Temporary bytes of a program that the compiler refused as too large; None for another error."""
    found = TOO_LARGE.search(str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or not found:
        return None
    size, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return float(size) * UNITS[unit]


def compile_step(
    config: Config, models: Models, mesh: Mesh, by_hand: Mapping[str, Need], say: Callable[[str], None]
) -> dict[str, Need]:
    """Memory and cost of each program of the step, by compiling it; nothing is allocated or run.

    Args:
      by_hand: estimates, whose costs are used for a program that the compiler refuses as too large.
    """
    needs = {}
    held = resident_bytes(config, models, mesh)
    for name, need in run_here(config, PROGRAMS).items():
        say(f"compiling {name} ...")
        try:
            needs[name] = need(config, models, mesh, held)
        except jax.errors.JaxRuntimeError as error:
            temporary = refused_bytes(error)
            if temporary is None:
                raise
            needs[name] = Need(held + temporary, temporary, by_hand[name].cost)
            say(f"the compiler refused {name}: {temporary / 1e9:.1f} GB of temporaries; its cost is estimated")
            continue
        say(f"compiled {name} in {needs[name].compile_seconds:.0f} s")
    return needs
