"""How many rows of a rollout decode at a time on this machine, where the configuration does not say."""

import os

import jax

from pbrl_jax.checkpoint import list_checkpoints, read_meta
from pbrl_jax.config.serialize import from_json
from pbrl_jax.config.tree import Config, with_values
from pbrl_jax.core.errors import CheckpointError, ConfigError
from pbrl_jax.core.paths import WorkDir
from pbrl_jax.mesh.agree import exchange
from pbrl_jax.plan.analytic import Sizes
from pbrl_jax.plan.chips import CHIPS, Chip
from pbrl_jax.plan.roofline import fitting_slots, local_chip
from pbrl_jax.plan.shapes import Models, reward_bytes
from pbrl_jax.train.experiment import Experiment


def local_memory() -> float:
    """Bytes of memory of one local device."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    return float(stats["bytes_limit"]) if stats else float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def local_plan_chip(count: int) -> Chip:
    """The chip of this machine: a known accelerator, or its processor."""
    kind = jax.devices()[0].device_kind.lower()
    known = next((chip for name, chip in CHIPS.items() if name in kind), None)
    return known._replace(memory=local_memory()) if known else local_chip(count, local_memory())


def saved_slots(config: Config, work: WorkDir) -> int | None:
    """What the run of this work directory chose; None where it has no checkpoint."""
    for _, folder in list_checkpoints(work.checkpoints):
        try:
            return from_json(read_meta(folder)["config"], type(config)).rollout.slots
        except (CheckpointError, KeyError):
            continue  # damaged, or without a configuration: an older one may tell
    return None


def with_slots(experiment: Experiment) -> Experiment:
    """The experiment with a value of `rollout.slots`: as configured, else as the run was begun with, else the rows that
    have room in memory (0: all of them). All hosts choose the same."""
    config = experiment.config
    if config.rollout.slots or config.train.fused:
        return experiment
    rows = config.train.prompts_per_step * config.algo.num_generations
    slots = saved_slots(config, experiment.work)
    if slots is None:
        try:
            reward = reward_bytes(config)
        except ConfigError:  # a model of unknown size
            reward = 0.0
        models = Models(experiment.policy.spec, experiment.encoder.spec, reward)
        sizes, memory = Sizes(*experiment.mesh.devices.shape), local_plan_chip(jax.device_count()).memory
        slots = min(exchange("slots", fitting_slots(config, models, sizes, memory)))
        slots = 0 if slots >= rows else slots
    if slots:
        print(f"{slots} of a rollout's {rows} rows decode at a time (rollout.slots).")
    return experiment._replace(config=with_values(config, rollout={"slots": slots}))
