"""The programs of a step, compiled ahead of time for a mesh of devices that need not be present."""

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from pbrl_jax.config.tree import Config, with_values
from pbrl_jax.core.batching import length_bucket
from pbrl_jax.core.records import PromptBatch, SamplingParams
from pbrl_jax.mesh.sharding import MESH_AXES, batch_sharding, replicated, row_shards, slice_count
from pbrl_jax.models.slots import BLOCK
from pbrl_jax.models.specs import DecoderSpec, TextEncoderSpec
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
from pbrl_jax.rollout.refill import slot_sizes
from pbrl_jax.rollout.sampling import sampling_params
from pbrl_jax.rollout.slots import SlotPrograms, Slots, Until, slot_programs, spec_of
from pbrl_jax.rollout.weights import sampling_spec
from pbrl_jax.train.programs import make_update, updates_per_rollout
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
    #: Devices of a slice (see `slice_devices`).
    box: int = 0


def slice_devices(mesh: Mesh) -> int:
    """Devices of each slice of a mesh of several; 0 for a mesh within one."""
    slices = slice_count(mesh.devices.flat)
    return mesh.size // slices if slices > 1 else 0


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
    text, box = compiled.as_text(), slice_devices(mesh)
    once, twice = (program_cost(text, turns, box=box) for turns in (1, 2))
    seconds, token = time.perf_counter() - start, twice.plus(once, -1)
    return Compiled(memory, once, token, seconds, compiled.output_shardings, text, box)


def result_shapes(mesh: Mesh, program, compiled: Compiled, *shapes):
    """Shapes of the results of a compiled program, with their shardings."""
    with jax.set_mesh(mesh):
        return add_shardings(jax.eval_shape(program, *shapes), compiled.shardings)


class DecodeCost(NamedTuple):
    """Cost of a segment of decoding: what it does once, at every token, and at every token for a block of the cache."""

    once: Cost
    token: Cost
    block: Cost

    def rows(self, prompt: int, tokens: int, segment: int) -> Cost:
        """Cost of rows of `prompt` + `tokens` tokens, the first of which comes with the prompt, in segments."""
        blocks = sum((prompt + number) // BLOCK + 1 for number in range(tokens - 1))
        total = Cost().plus(self.once, -(-tokens // segment))
        return total.plus(self.token, tokens - 1).plus(self.block, blocks)


def decode_cost(program: Compiled) -> DecodeCost:
    """From a program's cost with n tokens, each of which reads m blocks: once + n (token + m block)."""
    first, second, third = (program_cost(program.text, *turns, program.box) for turns in ((1, 1), (2, 1), (1, 2)))
    block = third.plus(first, -1)
    token = second.plus(first, -1).plus(block, -1)
    return DecodeCost(first.plus(token, -1).plus(block, -1), token, block)


class SlotShapes(NamedTuple):
    """Shapes of the arguments of a rollout's programs on a mesh."""

    params: Any
    prompts: PromptBatch
    keys_N: Any
    sampling: SamplingParams
    slots: Slots
    until: Until


def slot_shapes(config: Config, spec: DecoderSpec, mesh: Mesh, programs: SlotPrograms) -> tuple[SlotShapes, Compiled]:
    """(the shapes of a rollout's programs, the program that lays the parameters out)."""
    G, P, T = config.algo.num_generations, config.train.prompts_per_step, config.rollout.max_prompt_length
    given, batch = sharded_sampler(config, spec, mesh), sharded_batch(config, mesh).prompts
    laid = compile_ahead(mesh, programs.lay, given)
    devices = row_shards(mesh)
    slots = slot_sizes(config.rollout.slots, P * G, devices)[0]
    at_once = -(-slots // G) * devices

    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.int32, sharding=batch_sharding(mesh))

    def keys(rows: int):
        found = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
        return add_shardings(found, batch_sharding(mesh))

    everywhere = replicated(mesh)
    sampling = add_shardings(jax.eval_shape(lambda: sampling_params(1.0, 1.0, 0, EOS_IDS)), everywhere)
    make = functools.partial(programs.empty, rows=slots * devices, prompt_length=T)
    with jax.set_mesh(mesh):
        empty = jax.eval_shape(make, batch, keys(P * G))[0]
        empty = jax.tree.map(lambda x: add_shardings(x, NamedSharding(mesh, spec_of(x))), empty)
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    prompts = PromptBatch(shape(at_once, T), shape(at_once), shape(at_once))
    params = result_shapes(mesh, programs.lay, laid, given)
    return SlotShapes(params, prompts, keys(at_once * G), sampling, empty, Until(count, count, count)), laid


def generate_need(config: Config, models: Models, mesh: Mesh, other_bytes: float) -> Need:
    """The rollout at full length: prefill of as many prompts as fill the slots, and the segment, once for every time
    that the slots are filled. A kernel of decoding would be counted as if it read all its arguments; rows of full
    length read the same without."""
    spec = dataclasses.replace(models.policy, decode_attention="portable")
    P, G = config.train.prompts_per_step, config.algo.num_generations
    T, R = config.rollout.max_prompt_length, config.rollout.max_completion_length
    programs = slot_programs(sampling_spec(spec, config.rollout), G, R, config.rollout.weights)
    at, laid = slot_shapes(config, spec, mesh, programs)
    first = compile_ahead(mesh, programs.start, at.params, at.prompts, at.keys_N, at.sampling)
    staged = result_shapes(mesh, programs.start, first, at.params, at.prompts, at.keys_N, at.sampling)
    segment = compile_ahead(mesh, programs.segment, at.params, at.slots, at.sampling, at.until)
    times = P * G / at.slots.rows.row_S.shape[0]
    cost = laid.cost.plus(first.cost, P / at.prompts.lengths_P.shape[0])
    cost = cost.plus(decode_cost(segment).rows(T, R, config.rollout.segment_length), times)
    waiting = tree_bytes(staged.cache) if times > 1 else 0.0
    most = max(segment.memory.total + waiting, first.memory.total + tree_bytes(at.slots.cache) + waiting)
    return Need(
        other_bytes + max(most, laid.memory.temporary + laid.memory.results),
        segment.memory.temporary,
        cost,
        laid.seconds + first.seconds + segment.seconds,
    )


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
    """The updates of a full-length batch, unpacked, which is their worst case."""
    between = sharded_state(config, models.policy, mesh)
    state = sharded_state(with_values(config, train={"offload": ()}), models.policy, mesh)
    start, batch = sharded_frozen(config, models.policy, mesh), sharded_batch(config, mesh)
    reference, base = start if config.algo.beta > 0 else None, start if config.lora.rank else None
    found = compile_ahead(mesh, make_update(models.policy, config), state, reference, batch, base, bucket=None)
    held = other_bytes - tree_bytes((between, reference, base))
    moments = Cost(host_bytes=2 * (tree_bytes(state) - tree_bytes(between)))  # fetched, and sent back
    cost = Cost().plus(found.cost.plus(moments), updates_per_rollout(config))
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
