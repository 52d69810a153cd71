"""`pbrl plan CONFIG`: whether a configuration fits, how long a step takes, and what bounds it."""

import json
import os
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from rich.console import Console
from rich.table import Table

from pbrl_jax.config.supervised import STAGES
from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import as_path, write_atomic
from pbrl_jax.mesh.rows import check_rows
from pbrl_jax.mesh.sharding import MESH_AXES, make_mesh
from pbrl_jax.plan.analytic import Sizes, estimate_step, parameter_count, save_bytes
from pbrl_jax.plan.chips import CHIPS, DEFAULT_POOL, Chip, Topology, parse_topology
from pbrl_jax.plan.programs import compile_step
from pbrl_jax.plan.roofline import (
    Plan,
    chosen_decoding,
    make_plan,
    mesh_flags,
    mesh_sizes,
    nearest_change,
    on_topology,
    sizes_on,
    sweep,
)
from pbrl_jax.plan.shapes import Models, check_shards, run_models
from pbrl_jax.plan.stages import as_update, compile_stage, estimate_stage, samples_first
from pbrl_jax.run.assemble import check_positions, check_start
from pbrl_jax.run.check import batch_arithmetic
from pbrl_jax.run.decoding import local_box, local_plan_chip
from pbrl_jax.text.tokenizers import MissingTokenizer
from pbrl_jax.train.programs import updates_per_rollout
from pbrl_jax.weights.adapters import base_of
from pbrl_jax.weights.folders import own_folder
from pbrl_jax.weights.hf_decoder import decoder_spec, kept_fields
from pbrl_jax.weights.hf_fields import read_config
from pbrl_jax.weights.policies import Policy

#: Settings of libtpu on a machine without a TPU.
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # fmt: skip
SWEEP_LINES = 12
FAULT_LINES = 4


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def tpu_devices(topology: Topology):
    """Descriptions of a topology's devices, from the TPU compiler; None where it is not installed."""
    try:
        import libtpu  # noqa: F401
    except ImportError:
        return None
    from jax.experimental import topologies

    for name, value in NO_TPU.items():
        os.environ.setdefault(name, value)
    several = {"num_slices": topology.slices} if topology.slices > 1 else {}
    try:
        return list(topologies.get_topology_desc(topology.compiler_name, "tpu", **several).devices)
    except Exception as error:
        raise ConfigError(
            f"The TPU compiler does not know {topology.name}: {str(error).splitlines()[0]}. "
            f"{topology.kind} comes as {', '.join(topology.chip.shapes)}."
        ) from error


def mesh_of(config: Config, topology: Topology | None) -> tuple[Mesh | None, str]:
    """(the mesh to compile for, ""): a topology's, or this machine's; or (None, why nothing can be compiled)."""
    if config.lora.quantization != "none":
        return None, f"weights in {config.lora.quantization} have no shapes before they are made"
    if topology is None:
        return make_mesh(config.mesh), ""
    if not topology.is_tpu:
        return None, "no such GPU is here"
    devices = tpu_devices(topology)
    if devices is None:
        return None, "the TPU compiler is not installed (pip install libtpu)"
    return make_mesh(config.mesh, devices), ""


class Place(NamedTuple):
    """Where a step is planned: the topology (None: this machine), its mesh and one of its devices."""

    topology: Topology | None
    sizes: Sizes
    chip: Chip

    @property
    def chips(self) -> int:
        return self.sizes.chips

    @property
    def name(self) -> str:
        return f"{self.chips} local devices" if self.topology is None else self.topology.name


def place_of(config: Config, topology: str, samples: bool = True) -> Place:
    """The place that a command names, on which the configuration can run; `samples` as in `validate`.

    Raises:
      ConfigError: as `check_start`, or what does not divide over the mesh.
    """
    if not topology:
        chips = jax.device_count()
        check_start(config, chips, samples)
        return Place(None, mesh_sizes(config, chips, local_box()), local_plan_chip(chips))
    where = parse_topology(topology)
    check_start(config, where.chips, samples)
    return Place(where, sizes_on(config, where), where.chip)


def plan_table(plan: Plan, title: str) -> Table:
    """The programs of a plan, a row each."""
    caption = f"GB are 1e9 bytes of one device, of which {plan.chip.pool:.0%} may be filled; seconds are at least"
    table = Table(title=title, caption=caption)
    for column in ("program", "HBM GB", "temporary", "TFLOP", "GB moved", "GB sent", "seconds", "expected", "binds"):
        table.add_column(column, justify="left" if column in ("program", "binds") else "right")
    for name, row in plan.rows.items():
        need, cost = row.need, row.need.cost
        table.add_row(
            name, f"{need.hbm_bytes / 1e9:.2f}", f"{need.temp_bytes / 1e9:.2f}", f"{cost.flops / 1e12:.3g}",
            f"{cost.bytes / 1e9:.3g}", f"{cost.collective_bytes / 1e9:.3g}", f"{row.seconds:.3g}",
            f"{row.expected:.3g}", row.binds,
        )  # fmt: skip
    return table


def print_plan(plan: Plan, title: str, updates: int) -> None:
    """The table of a step's plan, what it sends, and what it holds that it must not; `updates` of each rollout."""
    Console(width=110).print(plan_table(plan, title))
    for name, row in plan.rows.items():
        sent = ", ".join(
            f"{kind} {size / 1e9:.3g} GB" for kind, size in sorted(row.need.cost.collectives.items()) if size
        )
        if sent:
            network = row.need.cost.network_bytes
            passed = f"; {network / 1e9:.3g} GB of it between slices or boxes" if network else ""
            print(f"{name} sends per chip: {sent}{passed}")
    faults = plan.rows["update"].need.faults if "update" in plan.rows else None
    if faults is not None:
        good = "no large replicated parameter, and no array of the size of its logits"
        print(f"The compiled update holds {'; '.join(faults[:FAULT_LINES]) if faults else good}.")
    slowest = max(plan.rows, key=lambda name: plan.rows[name].seconds)
    print(
        f"{_unit(updates).capitalize()} takes at least {plan.step_seconds:.3g} s "
        f"({plan.tokens_per_second:.4g} response tokens a second); {slowest} takes longest, bound by "
        f"{plan.rows[slowest].binds}."
    )


def _unit(updates: int) -> str:
    """What the seconds of a plan are of."""
    return "a step" if updates == 1 else f"a rollout with its {updates} steps"


def print_expected(plan: Plan, chips: int, steps: int, updates: int = 1) -> None:
    """The seconds of a step and the hours of a run at the rates that measured programs reach, where some are known;
    `updates` are the steps on each rollout."""
    chip, hours = plan.chip, plan.expected_seconds * steps / updates / 3600
    if chip.compute_share < 1:
        print(
            f"Expected: {plan.expected_seconds:.3g} s {_unit(updates)}, with {chip.compute_share:.0%} of the peak "
            f"FLOPs and {chip.memory_share:.0%} of the memory's bandwidth, as published for such chips "
            f"(pbrl_jax/plan/chips.py); {steps} steps take {hours:.1f} hours, {hours * chips:.0f} device hours."
        )


def verdict(plan: Plan, topology: Topology | None) -> str:
    """Whether it fits; on GPUs, also in the memory that JAX takes by default."""
    held, room = plan.held / 1e9, plan.chip.room / 1e9
    words = f"It {'fits' if plan.fits else 'does not fit'}: {held:.2f} GB of {plan.capacity / 1e9:.1f} GB a chip."
    if topology is None or topology.is_tpu:
        return words
    default = DEFAULT_POOL * plan.capacity / 1e9
    return (
        f"{words} A run may fill {room:.1f} GB with XLA_CLIENT_MEM_FRACTION={plan.chip.pool}, which the launch scripts "
        f"set. Without it JAX takes {DEFAULT_POOL:.0%} of a GPU's memory, {default:.1f} GB, and it "
        f"{'fits, too' if held <= default else 'does not fit'}."
    )


def print_verdict(config: Config, plan: Plan, place: Place, models: Models) -> None:
    """Whether it fits, and what would."""
    print(verdict(plan, place.topology))
    if not plan.fits and place.topology is not None:
        by_hand = estimate_step(config, on_topology(models, place.topology), place.sizes)
        beyond = {name: row.need.hbm_bytes - by_hand[name].hbm_bytes for name, row in plan.rows.items()}
        change = nearest_change(config, models, place.topology, beyond)
        print(f"The nearest change that would fit, by the estimate: {change}")


def print_sweep(config: Config, models, kinds: tuple[str, ...]) -> None:
    """The cheapest machines that a step fits on."""
    offers = sweep(config, models, kinds, say)
    if not offers:
        print(f"Nothing fits on {', '.join(kinds)}: lower train.microbatch_prompts or use --policy.remat full.")
        return
    table = Table(title="By hand, the best mesh of each topology that fits; the cheapest first")
    for column in ("topology", "data x fsdp x tensor", "seconds", "expected", "tokens a second", "$ a million tokens"):
        table.add_column(column, justify="right")
    for offer in offers[:SWEEP_LINES]:
        table.add_row(
            offer.topology.name, " x ".join(map(str, offer.sizes.axes.values())), f"{offer.plan.step_seconds:.4g}",
            f"{offer.plan.expected_seconds:.4g}", f"{offer.plan.tokens_per_second:.4g}", f"{offer.dollars:.3g}",
        )  # fmt: skip
    Console(width=110).print(table)
    best = offers[0]
    print(f"The cheapest that fits: --topology {best.topology.name} {mesh_flags(best.sizes)}")


def plan_stage(config: Config, models: Models, place: Place, mesh: Mesh | None, verb: str) -> Plan:
    """Print the plan of `pbrl sft`, `pbrl dpo` or `pbrl encoder`; `mesh`: what to compile for."""
    section = getattr(config, STAGES[verb])
    check_rows(STAGES[verb], section.batch_size, section.microbatch_size, AbstractMesh(place.sizes[:3], MESH_AXES))
    if mesh is None:
        needs = estimate_stage(config, models, place.sizes, verb)
    else:
        needs = dict(compile_stage(config, models, mesh, verb, say))
    plan = make_plan(as_update(config, verb), needs, place.chip)
    plan = plan._replace(tokens=0) if verb == "encoder" else plan
    table = plan_table(plan, f"pbrl {verb} on {place.name}, {'by hand' if mesh is None else 'compiled'}")
    Console(width=110).print(table)
    train = plan.rows["train"]
    print(f"A step takes at least {train.seconds:.3g} s, bound by {train.binds}.")
    print_expected(plan, place.chips, section.steps)
    advice = "" if plan.fits else f" Lower {STAGES[verb]}.microbatch_size, or raise mesh.fsdp."
    print(f"{verdict(plan, place.topology)}{advice}")
    return plan


def plan_step(config: Config, models: Models, place: Place, mesh: Mesh | None) -> Plan:
    """Print the plan of a step of `pbrl train`; `mesh`: what to compile for."""
    print(batch_arithmetic(config, place.chips))
    config, notes = chosen_decoding(config, models, place.sizes, place.chip)
    print("".join(f"{note}\n" for note in notes), end="")
    by_hand = estimate_step(config, on_topology(models, place.topology), place.sizes)
    needs = by_hand if mesh is None else compile_step(config, models, mesh, by_hand, say)
    plan = make_plan(config, needs, place.chip)
    updates = updates_per_rollout(config)
    print_plan(plan, f"{place.name}, {'by hand' if mesh is None else 'compiled'}", updates)
    print_expected(plan, place.chips, config.train.max_steps, updates)
    if config.rollout.engine == "vllm":
        size = parameter_count(models.policy) * jnp.dtype(models.policy.dtype).itemsize
        print(
            f"The vLLM server holds {size / 1e9:.2f} GB of weights and its cache beside this. On the same chips, "
            "--gpu-memory-utilization is its share and XLA_CLIENT_MEM_FRACTION that of the run."
        )
    print_verdict(config, plan, place, models)
    together = jax.local_device_count() if place.topology is None else place.topology.chips_per_host
    saved = save_bytes(config, models, place.sizes, together)
    print(f"While a save is written, a host of {together} chips holds a copy in its memory: {saved / 1e9:.2f} GB.")
    return plan


def check_lengths(config: Config) -> None:
    """Raise ConfigError for prompts and responses beyond the positions of a policy in a local folder."""
    folder = os.path.expanduser(base_of(config.policy.source))
    stored = read_config(folder, folder) if os.path.isdir(folder) and not own_folder(folder, "policy") else None
    if stored is not None:
        nothing = MissingTokenizer(folder)
        check_positions(config, Policy(decoder_spec(stored), None, nothing, "", kept_fields(stored)))


def main(
    config: Config, topology: str = "", json_file: str = "", sweeping: bool = False, verb: str = "train"
) -> Plan | None:
    """Print the plan of a configuration.

    Args:
      topology: `v5p:2x2x4`, `v5litepod-16`, `2xv5p-32`, `h100:8`, ...; empty: this machine's devices.
      json_file: also write the plan there.
      verb: whose step: train, sft, dpo or encoder.
      sweeping: instead, compare all topologies (with `topology`, those of its kind).

    Raises:
      ConfigError: a topology that does not exist, a mesh that does not divide, or a model of unknown size.
    """
    if sweeping:
        if verb != "train":
            raise ConfigError(f"--sweep compares steps of `pbrl train`, and --verb is {verb}. Leave one of them out.")
        if json_file:
            raise ConfigError("--sweep prints a table and writes no file. Leave --json out.")
        kinds = tuple(CHIPS) if not topology else (topology if topology in CHIPS else parse_topology(topology).kind,)
        print_sweep(config, run_models(config), kinds)
        return None
    place = place_of(config, topology, verb == "train" or samples_first(config, verb))
    models = run_models(config)
    check_shards(config, models.policy, place.sizes)
    mesh, reason = mesh_of(config, place.topology)
    if mesh is None:
        say(f"{reason}: the numbers are estimates, not compiled.")
    if verb == "train":
        check_lengths(config)
        plan = plan_step(config, models, place, mesh)
    else:
        plan = plan_stage(config, models, place, mesh, verb)
    if json_file:
        write_atomic(as_path(json_file), json.dumps(plan.as_json(), indent=1))
    return plan
