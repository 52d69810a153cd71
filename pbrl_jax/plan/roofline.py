"""Roofline model: from memory and cost of programs to whether they fit, how long they take, and what limits them."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pbrl_jax.config.tree import Config, with_values
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.mesh.sharding import mesh_shape
from pbrl_jax.plan.analytic import Sizes, estimate_step, generate_estimate, slots_of
from pbrl_jax.plan.chips import CHIPS, CPU_BANDWIDTH, CPU_CORE_FLOPS, Chip, Topology
from pbrl_jax.plan.programs import Need
from pbrl_jax.plan.shapes import Models

#: Share of a chip's memory that a plan may fill; the rest goes to the runtime and to fragmentation.
USABLE = 0.95


class Row(NamedTuple):
    """A program of the step: its needs, and a lower bound of its time."""

    need: Need
    seconds: float
    #: The limiting resource: compute, memory, links, or host (copies to host memory).
    binds: str


class Plan(NamedTuple):
    """A step on a machine."""

    rows: Mapping[str, Row]
    capacity: float
    #: Response tokens per step.
    tokens: int

    @property
    def step_seconds(self) -> float:
        return sum(row.seconds for row in self.rows.values())

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.step_seconds

    @property
    def fits(self) -> bool:
        return all(row.need.hbm_bytes <= USABLE * self.capacity for row in self.rows.values())

    def as_json(self) -> dict[str, Any]:
        """The plan as `--json` writes it."""
        programs = {
            name: {
                "hbm_bytes": row.need.hbm_bytes, "temp_bytes": row.need.temp_bytes, "flops": row.need.cost.flops,
                "bytes": row.need.cost.bytes, "collective_bytes": row.need.cost.collective_bytes,
                "seconds": row.seconds,
            }
            for name, row in self.rows.items()
        }  # fmt: skip
        return {
            "programs": programs, "hbm_capacity": self.capacity, "fits": self.fits,
            "tokens_per_second": self.tokens_per_second, "step_seconds": self.step_seconds,
        }  # fmt: skip


def local_chip(devices: int, memory: float) -> Chip:
    """This machine's processor, shared by its virtual devices."""
    flops = CPU_CORE_FLOPS * (os.cpu_count() or 1) / devices
    return Chip(
        flops, memory / devices, CPU_BANDWIDTH / devices, CPU_BANDWIDTH / devices, CPU_BANDWIDTH / devices, 0.0, ()
    )


def time_of(need: Need, chip: Chip) -> Row:
    """The roofline: the slowest of compute, memory traffic, links and host copies, each at its peak rate."""
    seconds = {
        "compute": need.cost.flops / chip.flops,
        "memory": need.cost.bytes / chip.bandwidth,
        "links": need.cost.collective_bytes / chip.link,
        "host": need.cost.host_bytes / chip.host,
    }
    binds = max(seconds, key=lambda resource: seconds[resource])
    return Row(need, seconds[binds], binds)


def make_plan(config: Config, needs: Mapping[str, Need], chip: Chip) -> Plan:
    """The plan of a step with these programs."""
    tokens = config.train.prompts_per_step * config.algo.num_generations * config.rollout.max_completion_length
    return Plan({name: time_of(need, chip) for name, need in needs.items()}, chip.memory, tokens)


def mesh_sizes(config: Config, chips: int) -> Sizes:
    """The config's mesh on a number of chips (ConfigError where it does not divide)."""
    return Sizes(*mesh_shape(config.mesh, chips))


def on_topology(models: Models, topology: Topology | None) -> Models:
    """The models with the attention kernel that `auto` takes there, as `models.fused_attention.fused_kernel` does."""
    spec = models.policy
    if topology is None or spec.attention != "auto" or spec.dtype != "bfloat16" or spec.attention_softcap:
        return models
    return models._replace(policy=dataclasses.replace(spec, attention="splash" if topology.is_tpu else "cudnn"))


def estimate_plan(config: Config, models: Models, topology: Topology) -> Plan:
    """The estimated plan on a topology, with the decoding that a run chooses there."""
    sizes = mesh_sizes(config, topology.chips)
    config, _ = chosen_decoding(config, models, sizes, topology.chip)
    needs = estimate_step(config, on_topology(models, topology), sizes)
    return make_plan(config, needs, topology.chip)


def decoding_weights(config: Config, models: Models, sizes: Sizes, chip: Chip) -> tuple[str, str]:
    """(`whole` or `tensor` as rollout.weights, why): the faster one by the estimate, of those that fit. Exchanged
    activations are waited for."""
    needs = {name: generate_estimate(with_values(config, rollout={"weights": name}), models, sizes)
             for name in ("whole", "tensor")}  # fmt: skip
    seconds = {name: need.cost.bytes / chip.bandwidth + need.cost.collective_bytes / chip.link
               for name, need in needs.items()}  # fmt: skip
    fit = [name for name, need in needs.items() if need.hbm_bytes <= USABLE * chip.memory] or ["tensor"]
    estimates = ", ".join(f"{name} {seconds[name]:.3g} s and {needs[name].hbm_bytes / 1e9:.3g} GB" for name in needs)
    return min(fit, key=seconds.__getitem__), f"a full rollout on a device, by the plan: {estimates}"


def chosen_decoding(config: Config, models: Models, sizes: Sizes, chip: Chip) -> tuple[Config, list[str]]:
    """(the configuration with a value of rollout.weights and rollout.slots where it leaves them to the plan, a sentence
    for each choice)."""
    notes: list[str] = []
    if config.rollout.engine != "jax":
        return config, notes
    if config.rollout.weights == "auto":
        chosen, why = ("whole", "") if sizes.fsdp == 1 else decoding_weights(config, models, sizes, chip)
        config = with_values(config, rollout={"weights": chosen})
        notes += [f"Decoding with --rollout.weights {chosen}: {why}."] if why else []
    if not config.rollout.slots and not config.train.fused:
        slots, rows = fitting_slots(config, models, sizes, chip.memory), rollout_rows(config)
        config = with_values(config, rollout={"slots": slots if slots < rows else 0})
        notes += [f"{slots} of a rollout's {rows} rows decode at a time (rollout.slots)."] if slots < rows else []
    return config, notes


def rollout_rows(config: Config) -> int:
    """Rows of a rollout."""
    return config.train.prompts_per_step * config.algo.num_generations


def fitting_slots(config: Config, models: Models, sizes: Sizes, memory: float) -> int:
    """How many rows can decode at a time by the estimate: all of them, or half, a quarter, ..., at least one a chip.

    Args:
      memory: bytes of a chip.
    """
    slots, least = rollout_rows(config), sizes.row_shards
    while slots > least:
        need = generate_estimate(with_values(config, rollout={"slots": slots}), models, sizes)
        if need.hbm_bytes <= USABLE * memory:
            break
        slots = -(-slots // 2 // least) * least
    return slots


Change = tuple[str, Config]


def single_changes(config: Config, models: Models, topology: Topology) -> list[Change]:
    """Single changes that reduce memory, those that cost the least time first: (flags, config)."""
    changes: list[Change] = []

    def add(flags: str, **sections: dict) -> None:
        changes.append((flags, with_values(config, **sections)))

    for sizes in meshes(config, models, topology.chips):
        mesh = sizes._asdict()
        if mesh_sizes(config, topology.chips) != sizes and sizes.weight_shards > 1:
            add(" ".join(f"--mesh.{axis} {size}" for axis, size in mesh.items()), mesh=mesh)
    size = config.train.microbatch_prompts or config.train.prompts_per_step
    while size % 2 == 0 and size // 2 >= mesh_sizes(config, topology.chips).row_shards:
        size //= 2
        add(f"--train.microbatch-prompts {size}", train={"microbatch_prompts": size})
    if config.policy.remat != "full":
        add("--policy.remat full", policy={"remat": "full"})
    if not 0 < config.train.logprob_chunk <= 128:
        add("--train.logprob-chunk 128", train={"logprob_chunk": 128})
    slots = slots_of(config)
    while slots % 2 == 0 and slots // 2 >= mesh_sizes(config, topology.chips).row_shards:
        slots //= 2
        add(f"--rollout.slots {slots}", rollout={"slots": slots})
    if config.rollout.weights != "as_trained":
        add("--rollout.weights tensor", rollout={"weights": "tensor"})
        add("--rollout.weights as_trained", rollout={"weights": "as_trained"})
    able = ("optimizer", "reference") if config.algo.beta > 0 and not config.lora.rank else ("optimizer",)
    for names in (able[:1], able):
        if set(names) - set(config.train.offload):
            add(f"--train.offload {' '.join(names)}", train={"offload": names})
    return changes


def nearest_change(config: Config, models: Models, topology: Topology, corrected: Mapping[str, float]) -> str:
    """The flags of the smallest change that would fit by the estimate, or a sentence that none does.

    Args:
      corrected: bytes that each compiled program needs beyond its estimate.
    """

    def fits(candidate: Config, where: Topology) -> bool:
        try:
            plan = estimate_plan(candidate, models, where)
        except ConfigError:
            return False
        share = topology.chips / where.chips
        return all(
            row.need.hbm_bytes + max(0.0, corrected.get(name, 0.0)) * share <= USABLE * plan.capacity
            for name, row in plan.rows.items()
        )

    changes = single_changes(config, models, topology)
    found = [(flags, changed) for flags, changed in changes if fits(changed, topology)]
    if found:
        return min(found, key=lambda change: estimate_plan(change[1], models, topology).step_seconds)[0]
    for flags, changed in changes:
        for more, both in single_changes(changed, models, topology):
            if fits(both, topology):
                return f"{flags} {more}"
    for shape in topology.chip.shapes:
        larger = Topology(topology.kind, shape)
        if larger.chips <= topology.chips:
            continue
        for sizes in meshes(config, models, larger.chips):
            if fits(with_values(config, mesh=sizes._asdict()), larger):
                mesh = " ".join(f"--mesh.{axis} {size}" for axis, size in sizes._asdict().items())
                return f"a larger machine: --topology {larger.name} {mesh}"
    return "none of one or two settings, nor a larger machine of this kind; lower rollout.max_completion_length"


def meshes(config: Config, models: Models, chips: int) -> list[Sizes]:
    """Meshes of a number of chips that divide the rows and the policy."""
    spec, rows = models.policy, config.train.microbatch_prompts or config.train.prompts_per_step
    found = []
    for tensor in (1, 2, 4, 8):
        if chips % tensor or spec.kv_heads % tensor or spec.ffn % tensor or spec.vocab_size % tensor:
            continue
        for fsdp in range(1, chips // tensor + 1):
            sizes = Sizes(chips // tensor // fsdp if chips // tensor % fsdp == 0 else 0, fsdp, tensor)
            if sizes.data and spec.width % fsdp == 0 and rows % sizes.row_shards == 0:
                found.append(sizes)
    return found


class Offer(NamedTuple):
    """One line of a sweep."""

    topology: Topology
    sizes: Sizes
    plan: Plan

    @property
    def dollars(self) -> float:
        """List price per million response tokens."""
        rate = self.topology.chips * self.topology.chip.dollars_per_hour / 3600
        return rate / self.plan.tokens_per_second * 1e6


def sweep(config: Config, models: Models, kinds: tuple[str, ...], say: Callable[[str], None]) -> list[Offer]:
    """All topologies of these kinds of chips, each with its fastest mesh that fits, the cheapest first; estimated."""
    offers = []
    for kind in kinds:
        for shape in CHIPS[kind].shapes:
            topology = Topology(kind, shape)
            best = None
            for sizes in meshes(config, models, topology.chips):
                changed = with_values(config, mesh=sizes._asdict())
                offer = Offer(topology, sizes, estimate_plan(changed, models, topology))
                if offer.plan.fits and (best is None or offer.plan.step_seconds < best.plan.step_seconds):
                    best = offer
            if best is None:
                say(f"{topology.name}: no mesh fits")
            else:
                offers.append(best)
    return sorted(offers, key=lambda offer: offer.dollars)
