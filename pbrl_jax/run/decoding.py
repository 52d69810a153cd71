"""How a rollout runs on this machine where the configuration leaves it to the plan: how many rows decode at a time, and
how the weights are sharded during decoding."""

import contextlib
import os
from pathlib import Path

import jax

from pbrl_jax.checkpoint import list_checkpoints, read_meta
from pbrl_jax.config.serialize import from_json
from pbrl_jax.config.tree import Config, with_values
from pbrl_jax.core.errors import CheckpointError, ConfigError
from pbrl_jax.core.paths import WorkDir
from pbrl_jax.mesh.agree import exchange
from pbrl_jax.mesh.sharding import slice_count
from pbrl_jax.plan.analytic import Sizes
from pbrl_jax.plan.chips import BOX, USABLE, Chip, known_chip
from pbrl_jax.plan.roofline import chosen_decoding, local_chip
from pbrl_jax.plan.shapes import Models, reward_bytes
from pbrl_jax.train.experiment import Experiment

#: Files with the limit of a container's memory in bytes, of both versions of Linux' cgroups.
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def local_memory() -> float:
    """Bytes of memory of one local device; of a processor, what a container may take of the machine's."""
    device = jax.local_devices()[0]
    if stats := device.memory_stats() if device.platform != "cpu" else None:
        return float(stats["bytes_limit"])
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit
            sizes.append(int(Path(file).read_text()))
    return float(min(sizes))


def local_plan_chip(count: int) -> Chip:
    """The chip of this machine: a known accelerator, or its processor."""
    known = known_chip(jax.devices()[0].device_kind)
    # A device's limit is what JAX has taken of a GPU's memory.
    return known._replace(memory=local_memory(), pool=USABLE) if known else local_chip(count, local_memory())


def local_box() -> int:
    """Devices that reach each other without the network (see plan.analytic.Sizes): of a TPU slice, or a box of GPUs."""
    devices = jax.devices()
    return BOX if devices[0].platform == "gpu" else len(devices) // slice_count(devices)


def saved_choice(config: Config, work: WorkDir) -> tuple[str, int] | None:
    """rollout.weights and rollout.slots of the run of this work directory; None where it has no checkpoint."""
    for _, folder in list_checkpoints(work.checkpoints):
        try:
            rollout = from_json(read_meta(folder)["config"], type(config)).rollout
        except (CheckpointError, KeyError):
            continue  # damaged, or without a configuration: an older one may tell
        return rollout.weights, rollout.slots
    return None


def with_decoding(experiment: Experiment) -> Experiment:
    """The experiment with values of `rollout.weights` and `rollout.slots`: as configured, else as the run was begun
    with, else by the plan. All hosts choose the same."""
    config = experiment.config
    saved = saved_choice(config, experiment.work)
    if saved is not None:
        weights = saved[0] if config.rollout.weights == "auto" else config.rollout.weights
        config = with_values(config, rollout={"weights": weights, "slots": config.rollout.slots or saved[1]})
        return experiment._replace(config=config)
    try:
        reward = reward_bytes(config)
    except ConfigError:  # a model of unknown size
        reward = 0.0
    models = Models(experiment.policy.spec, experiment.encoder.spec, reward)
    data, fsdp, tensor = experiment.mesh.devices.shape
    sizes = Sizes(data, fsdp, tensor, local_box())
    chosen, notes = chosen_decoding(config, models, sizes, local_plan_chip(jax.device_count()))
    all_weights, all_slots = zip(*exchange("decoding", [chosen.rollout.weights, chosen.rollout.slots]), strict=True)
    slots = min(filter(None, all_slots), default=0)
    print("".join(f"{note}\n" for note in notes), end="")
    return experiment._replace(config=with_values(config, rollout={"weights": all_weights[0], "slots": slots}))
