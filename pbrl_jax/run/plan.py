"""`pbrl plan CONFIG`: whether a configuration fits, how long a step takes, and what bounds it."""

import json
import os
import sys

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import as_path, write_atomic
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.plan.analytic import estimate_step, parameter_count, save_bytes
from pbrl_jax.plan.chips import CHIPS, Topology, parse_topology
from pbrl_jax.plan.programs import compile_step
from pbrl_jax.plan.roofline import (
    USABLE,
    Plan,
    chosen_decoding,
    make_plan,
    mesh_sizes,
    nearest_change,
    on_topology,
    sweep,
)
from pbrl_jax.plan.shapes import Models, check_shards, run_models
from pbrl_jax.plan.stages import SECTIONS, as_update, compile_stage, estimate_stage
from pbrl_jax.run.assemble import check_start
from pbrl_jax.run.check import batch_arithmetic
from pbrl_jax.run.decoding import local_plan_chip

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
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name).devices)
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


def plan_table(plan: Plan, title: str) -> Table:
    """The programs of a plan, a row each."""
    table = Table(title=title, caption=f"GB are 1e9 bytes of one chip, of which {USABLE:.0%} may be filled")
    for column in ("program", "HBM GB", "of it temporary", "TFLOP", "GB moved", "GB sent", "seconds", "binds"):
        table.add_column(column, justify="left" if column in ("program", "binds") else "right")
    for name, row in plan.rows.items():
        need, cost = row.need, row.need.cost
        table.add_row(
            name, f"{need.hbm_bytes / 1e9:.2f}", f"{need.temp_bytes / 1e9:.2f}", f"{cost.flops / 1e12:.3g}",
            f"{cost.bytes / 1e9:.3g}", f"{cost.collective_bytes / 1e9:.3g}", f"{row.seconds:.3g}", row.binds,
        )  # fmt: skip
    return table


def print_plan(plan: Plan, title: str) -> None:
    """The table of a step's plan, what it sends, and what it holds that it must not."""
    Console(width=110).print(plan_table(plan, title))
    for name, row in plan.rows.items():
        sent = ", ".join(
            f"{kind} {size / 1e9:.3g} GB" for kind, size in sorted(row.need.cost.collectives.items()) if size
        )
        if sent:
            print(f"{name} sends per chip: {sent}")
    faults = plan.rows["update"].need.faults if "update" in plan.rows else None
    if faults is not None:
        good = "no large replicated parameter, and no array of the size of its logits"
        print(f"The compiled update holds {'; '.join(faults[:FAULT_LINES]) if faults else good}.")
    slowest = max(plan.rows, key=lambda name: plan.rows[name].seconds)
    print(
        f"A step takes at least {plan.step_seconds:.3g} s ({plan.tokens_per_second:.4g} response tokens a second); "
        f"{slowest} takes longest, bound by {plan.rows[slowest].binds}."
    )


def print_verdict(config: Config, plan: Plan, topology: Topology | None, models, chips: int) -> None:
    """Whether it fits, and what would."""
    most = max(row.need.hbm_bytes for row in plan.rows.values())
    free = f"{most / 1e9:.2f} GB of {plan.capacity / 1e9:.1f} GB a chip"
    if plan.fits:
        print(f"It fits: {free}.")
        return
    print(f"It does not fit: {free}.")
    if topology is not None:
        by_hand = estimate_step(config, on_topology(models, topology), mesh_sizes(config, chips))
        beyond = {name: row.need.hbm_bytes - by_hand[name].hbm_bytes for name, row in plan.rows.items()}
        print(f"The nearest change that would fit, by the estimate: {nearest_change(config, models, topology, beyond)}")


def print_sweep(config: Config, models, kinds: tuple[str, ...]) -> None:
    """The cheapest machines that a step fits on."""
    offers = sweep(config, models, kinds, say)
    if not offers:
        print(f"Nothing fits on {', '.join(kinds)}: lower train.microbatch_prompts or use --policy.remat full.")
        return
    table = Table(title="By hand, the best mesh of each topology that fits; the cheapest first")
    for column in ("topology", "data x fsdp x tensor", "seconds a step", "tokens a second", "$ a million tokens"):
        table.add_column(column, justify="right")
    for offer in offers[:SWEEP_LINES]:
        table.add_row(
            offer.topology.name, " x ".join(map(str, offer.sizes)), f"{offer.plan.step_seconds:.4g}",
            f"{offer.plan.tokens_per_second:.4g}", f"{offer.dollars:.3g}",
        )  # fmt: skip
    Console(width=110).print(table)
    best = offers[0]
    mesh = f"--mesh.data {best.sizes.data} --mesh.fsdp {best.sizes.fsdp} --mesh.tensor {best.sizes.tensor}"
    print(f"The cheapest that fits: --topology {best.topology.name} {mesh}")


def plan_stage(config: Config, models: Models, place: tuple[Mesh | None, Topology | None, int], verb: str) -> Plan:
    """Print the plan of `pbrl sft`, `pbrl dpo` or `pbrl encoder`; `place`: what to compile for, where, chips."""
    mesh, where, chips = place
    if mesh is None:
        needs = estimate_stage(config, models, mesh_sizes(config, chips), verb)
    else:
        needs = dict(compile_stage(config, models, mesh, verb, say))
    tokens = config if verb == "encoder" else as_update(config, verb)
    plan = make_plan(tokens, needs, local_plan_chip(chips) if where is None else where.chip)
    name = f"{chips} local devices" if where is None else where.name
    table = plan_table(plan, f"pbrl {verb} on {name}, {'by hand' if mesh is None else 'compiled'}")
    Console(width=110).print(table)
    train = plan.rows["train"]
    most = max(row.need.hbm_bytes for row in plan.rows.values())
    print(f"A step takes at least {train.seconds:.3g} s, bound by {train.binds}.")
    verdict = "It fits" if plan.fits else "It does not fit"
    advice = "" if plan.fits else f" Lower {SECTIONS[verb]}.microbatch_size, or raise mesh.fsdp."
    print(f"{verdict}: {most / 1e9:.2f} GB of {plan.capacity / 1e9:.1f} GB a chip.{advice}")
    return plan


def main(
    config: Config, topology: str = "", json_file: str = "", sweeping: bool = False, verb: str = "train"
) -> Plan | None:
    """Print the plan of a configuration.

    Args:
      topology: `v5p:2x2x4`, `v5litepod-16`, `h100:8`, ...; empty: this machine's devices.
      json_file: also write the plan there.
      verb: whose step: train, sft, dpo or encoder.
      sweeping: instead, compare all topologies (with `topology` a kind such as `v5p`, only its own).

    Raises:
      ConfigError: a topology that does not exist, a mesh that does not divide, or a model of unknown size.
    """
    if sweeping:
        if verb != "train":
            raise ConfigError(f"--sweep compares steps of `pbrl train`, and --verb is {verb}. Leave one of them out.")
        kinds = (topology.partition(":")[0],) if topology else tuple(CHIPS)
        if kinds[0] not in CHIPS:
            parse_topology(topology)
        print_sweep(config, run_models(config), kinds)
        return None
    where = parse_topology(topology) if topology else None
    chips = jax.device_count() if where is None else where.chips
    check_start(config, chips)
    models = run_models(config)
    check_shards(models.policy, mesh_sizes(config, chips))
    mesh, reason = mesh_of(config, where)
    if mesh is None:
        say(f"{reason}: the numbers are estimates, not compiled.")
    if verb != "train":
        plan = plan_stage(config, models, (mesh, where, chips), verb)
        if json_file:
            write_atomic(as_path(json_file), json.dumps(plan.as_json(), indent=1))
        return plan
    print(batch_arithmetic(config, chips))
    chip = local_plan_chip(chips) if where is None else where.chip
    config, notes = chosen_decoding(config, models, mesh_sizes(config, chips), chip)
    print("".join(f"{note}\n" for note in notes), end="")
    by_hand = estimate_step(config, on_topology(models, where), mesh_sizes(config, chips))
    place = f"{chips} local devices" if where is None else where.name
    if mesh is None:
        needs, title = by_hand, f"{place}, by hand"
    else:
        needs, title = compile_step(config, models, mesh, by_hand, say), f"{place}, compiled"
    plan = make_plan(config, needs, chip)
    print_plan(plan, title)
    if config.rollout.engine == "vllm":
        size = parameter_count(models.policy) * jnp.dtype(models.policy.dtype).itemsize
        print(
            f"The vLLM server holds {size / 1e9:.2f} GB of weights and its cache beside this. On the same chips, "
            "--gpu-memory-utilization is its share and XLA_CLIENT_MEM_FRACTION that of the run."
        )
    print_verdict(config, plan, where, models, chips)
    together = jax.local_device_count() if where is None else where.chips_per_host
    saved = save_bytes(config, models, mesh_sizes(config, chips), together)
    print(f"While a save is written, a host of {together} chips holds a copy in its memory: {saved / 1e9:.2f} GB.")
    if json_file:
        write_atomic(as_path(json_file), json.dumps(plan.as_json(), indent=1))
    return plan
