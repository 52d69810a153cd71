"""Roofline model: from memory and cost of programs to whether they fit, how long they take, and what limits them."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pbrl_jax.config.tree import Config, with_values
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.mesh.sharding import check_slices, mesh_shape
from pbrl_jax.plan.analytic import Sizes, estimate_step, generate_estimate, slots_of
from pbrl_jax.plan.chips import CHIPS, CPU_BANDWIDTH, CPU_CORE_FLOPS, LINK_SHARE, USABLE, Chip, Topology
from pbrl_jax.plan.programs import Need
from pbrl_jax.plan.shapes import Models, check_shards
from pbrl_jax.train.programs import microbatch_size


class Row(NamedTuple):
    """A program of the step: its needs, a lower bound of its time, and the time to expect."""

    need: Need
    seconds: float
    #: The limiting resource at peak rates: compute, memory, links, network (between slices or boxes), or host (copies
    #: to host memory).
    binds: str
    #: Seconds at the rates that measured programs reach (see plan.chips).
    expected: float


class Plan(NamedTuple):
    """A step on a machine."""

    rows: Mapping[str, Row]
    chip: Chip
    #: Response tokens per step.
    tokens: int

    @property
    def capacity(self) -> float:
        """Bytes of memory of a device."""
        return self.chip.memory

    @property
    def step(self) -> list[Row]:
        """The programs of a step; a stage samples once, before its steps."""
        return [self.rows["train"]] if "train" in self.rows else list(self.rows.values())

    @property
    def step_seconds(self) -> float:
        """Of a rollout with all of its updates, or of a step of a stage."""
        return sum(row.seconds for row in self.step)

    @property
    def expected_seconds(self) -> float:
        return sum(row.expected for row in self.step)

    @property
    def held(self) -> float:
        """The most bytes of a device that a program needs."""
        return max(row.need.hbm_bytes for row in self.rows.values())

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.step_seconds

    @property
    def fits(self) -> bool:
        return self.held <= self.chip.room

    def as_json(self) -> dict[str, Any]:
        """The plan as `--json` writes it."""
        programs = {
            name: {
                "hbm_bytes": row.need.hbm_bytes, "temp_bytes": row.need.temp_bytes, "flops": row.need.cost.flops,
                "bytes": row.need.cost.bytes, "collective_bytes": row.need.cost.collective_bytes,
                "network_bytes": row.need.cost.network_bytes, "seconds": row.seconds, "expected_seconds": row.expected,
            }
            for name, row in self.rows.items()
        }  # fmt: skip
        return {
            "programs": programs, "hbm_capacity": self.capacity, "fits": self.fits,
            "tokens_per_second": self.tokens_per_second, "step_seconds": self.step_seconds,
            "expected_seconds": self.expected_seconds,
        }  # fmt: skip


def local_chip(devices: int, memory: float) -> Chip:
    """This machine's processor, shared by its virtual devices."""
    flops = CPU_CORE_FLOPS * (os.cpu_count() or 1) / devices
    return Chip(
        flops, memory / devices, CPU_BANDWIDTH / devices, CPU_BANDWIDTH / devices, CPU_BANDWIDTH / devices, 0.0, ()
    )


def time_of(need: Need, chip: Chip) -> Row:
    """The roofline: the slowest of compute, memory traffic, links, network and host copies, each at its peak rate; and
    at the rate that is reached."""
    cost = need.cost
    seconds = {
        "compute": (cost.flops / chip.flops, chip.compute_share),
        "memory": (cost.bytes / chip.bandwidth, chip.memory_share),
        "links": (cost.link_bytes / chip.link, LINK_SHARE),
        "network": (cost.network_bytes / chip.network, LINK_SHARE),
        "host": (cost.host_bytes / chip.host, LINK_SHARE),
    }
    binds = max(seconds, key=lambda resource: seconds[resource][0])
    return Row(need, seconds[binds][0], binds, max(least / share for least, share in seconds.values()))


def make_plan(config: Config, needs: Mapping[str, Need], chip: Chip) -> Plan:
    """The plan of a step with these programs."""
    tokens = config.train.prompts_per_step * config.algo.num_generations * config.rollout.max_completion_length
    return Plan({name: time_of(need, chip) for name, need in needs.items()}, chip, tokens)


def mesh_sizes(config: Config, chips: int, box: int = 0) -> Sizes:
    """The config's mesh on a number of chips (ConfigError where it does not divide), in slices or boxes of `box`."""
    return Sizes(*mesh_shape(config.mesh, chips), box)


def sizes_on(config: Config, topology: Topology) -> Sizes:
    """The config's mesh on a topology.

    Raises:
      ConfigError: it does not divide there, also not over several slices.
    """
    sizes = mesh_sizes(config, topology.chips, topology.box)
    check_slices(sizes.data, topology.slices, topology.chips)
    return sizes


def on_topology(models: Models, topology: Topology | None) -> Models:
    """The models with the attention kernel that `auto` takes there, as `models.fused_attention.fused_kernel` does."""
    spec = models.policy
    if topology is None or spec.attention != "auto" or spec.dtype != "bfloat16" or spec.attention_softcap:
        return models
    return models._replace(policy=dataclasses.replace(spec, attention="splash" if topology.is_tpu else "cudnn"))


def estimate_plan(config: Config, models: Models, topology: Topology) -> Plan:
    """The estimated plan on a topology, with the decoding that a run chooses there."""
    sizes = sizes_on(config, topology)
    config, _ = chosen_decoding(config, models, sizes, topology.chip)
    needs = estimate_step(config, on_topology(models, topology), sizes)
    return make_plan(config, needs, topology.chip)


def decoding_weights(config: Config, models: Models, sizes: Sizes, chip: Chip) -> tuple[str, str]:
    """(`whole` or `tensor` as rollout.weights, why): the faster one by the estimate, of those that fit. Exchanged
    activations are waited for."""
    needs = {name: generate_estimate(with_values(config, rollout={"weights": name}), models, sizes)
             for name in ("whole", "tensor")}  # fmt: skip
    seconds = {name: need.cost.bytes / chip.bandwidth + need.cost.link_bytes / chip.link
               + need.cost.network_bytes / chip.network for name, need in needs.items()}  # fmt: skip
    fit = [name for name, need in needs.items() if need.hbm_bytes <= chip.room] or ["tensor"]
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
        slots, rows = fitting_slots(config, models, sizes, chip.memory, chip.pool), rollout_rows(config)
        config = with_values(config, rollout={"slots": slots if slots < rows else 0})
        notes += [f"{slots} of a rollout's {rows} rows decode at a time (rollout.slots)."] if slots < rows else []
    return config, notes


def rollout_rows(config: Config) -> int:
    """Rows of a rollout."""
    return config.train.prompts_per_step * config.algo.num_generations


def fitting_slots(config: Config, models: Models, sizes: Sizes, memory: float, share: float = USABLE) -> int:
    """How many rows can decode at a time by the estimate: all of them, or half, a quarter, ..., at least one a chip.

    Args:
      memory: bytes of a chip, of which `share` may be filled.
    """
    slots, least = rollout_rows(config), sizes.row_shards
    while slots > least:
        need = generate_estimate(with_values(config, rollout={"slots": slots}), models, sizes)
        if need.hbm_bytes <= share * memory:
            break
        slots = -(-slots // 2 // least) * least
    return slots


Change = tuple[str, Config]


def single_changes(config: Config, models: Models, topology: Topology) -> list[Change]:
    """Single changes that reduce memory, those that cost the least time first: (flags, config)."""
    changes: list[Change] = []

    def add(flags: str, **sections: dict) -> None:
        changes.append((flags, with_values(config, **sections)))

    current = mesh_sizes(config, topology.chips, topology.box)
    for sizes in meshes(config, models, topology):
        if current != sizes and sizes.weight_shards > 1:
            add(mesh_flags(sizes), mesh=sizes.axes)
    size = microbatch_size(config)
    while size % (2 * current.row_shards) == 0:
        size //= 2
        add(f"--train.microbatch-prompts {size}", train={"microbatch_prompts": size})
    if config.policy.remat != "full":
        add("--policy.remat full", policy={"remat": "full"})
    if not 0 < config.train.logprob_chunk <= 128:
        add("--train.logprob-chunk 128", train={"logprob_chunk": 128})
    slots = slots_of(config)
    while slots % 2 == 0 and slots // 2 >= current.row_shards:
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
            row.need.hbm_bytes + max(0.0, corrected.get(name, 0.0)) * share <= plan.chip.room
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
        larger = topology._replace(shape=shape)
        if larger.chips <= topology.chips:
            continue
        for sizes in meshes(config, models, larger):
            if fits(with_values(config, mesh=sizes.axes), larger):
                return f"a larger machine: --topology {larger.name} {mesh_flags(sizes)}"
    return "none of one or two settings, nor a larger machine of this kind; lower rollout.max_completion_length"


def mesh_flags(sizes: Sizes) -> str:
    """The flags of a mesh."""
    return " ".join(f"--mesh.{axis} {size}" for axis, size in sizes.axes.items())


def meshes(config: Config, models: Models, topology: Topology) -> list[Sizes]:
    """Meshes of a topology's chips that divide the rows and, as training asks it, the parameters and the slices."""
    rows = microbatch_size(config)
    found = []
    for tensor in (size for size in (1, 2, 4, 8) if topology.chips % size == 0):
        for fsdp in range(1, topology.chips // tensor + 1):
            if topology.chips % (tensor * fsdp):
                continue
            sizes = Sizes(topology.chips // tensor // fsdp, fsdp, tensor, topology.box)
            if rows % sizes.row_shards == 0 and can_shard(config, models, sizes, topology):
                found.append(sizes)
    return found


def can_shard(config: Config, models: Models, sizes: Sizes, topology: Topology) -> bool:
    """Whether the parameters and the slices divide over a mesh."""
    try:
        check_slices(sizes.data, topology.slices, topology.chips)
        check_shards(config, models.policy, sizes)
    except ConfigError:
        return False
    return True


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
            for sizes in meshes(config, models, topology):
                changed = with_values(config, mesh=sizes.axes)
                offer = Offer(topology, sizes, estimate_plan(changed, models, topology))
                if offer.plan.fits and (best is None or offer.plan.step_seconds < best.plan.step_seconds):
                    best = offer
            if best is None:
                say(f"{topology.name}: no mesh fits")
            else:
                offers.append(best)
    return sorted(offers, key=lambda offer: offer.dollars)
