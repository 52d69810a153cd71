"""The optax chain of a run: clip, AdamW or Muon, schedule."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from pbrl_jax.algos.ppo import PpoConfig
from pbrl_jax.config.fields import settings_of
from pbrl_jax.config.tree import Config, OptimConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.trees import map_with_path

SCHEDULES = ("constant", "linear", "cosine")


def stage_optimizer(steps: int, learning_rate: float, warmup_steps: int, **more: Any) -> OptimConfig:
    """The optimizer of a stage: warm-up, over at most half of its steps, and cosine to zero. `more`: other fields."""
    return OptimConfig(
        learning_rate=learning_rate, schedule="cosine", warmup_steps=min(warmup_steps, steps // 2),
        schedule_steps=steps, **more,
    )  # fmt: skip


def make_schedule(config: OptimConfig) -> optax.Schedule:
    """Learning rate as a function of the number of updates: linear warm-up, then constant, linear or cosine.

    The decay ends after `schedule_steps` updates, whatever train.max_steps is.
    """
    peak, end = config.learning_rate, config.learning_rate * config.min_learning_rate_share
    if config.schedule not in SCHEDULES:
        raise ConfigError(f"optim.schedule {config.schedule!r} is not one of {', '.join(SCHEDULES)}.")
    if config.schedule == "constant":
        main = optax.constant_schedule(peak)
    else:
        steps = config.schedule_steps - config.warmup_steps
        if steps <= 0:
            raise ConfigError(
                f"optim.schedule={config.schedule} needs optim.schedule_steps > optim.warmup_steps; found "
                f"{config.schedule_steps} and {config.warmup_steps}. Use --optim.schedule-steps N."
            )
        if config.schedule == "linear":
            main = optax.linear_schedule(peak, end, steps)
        else:
            main = optax.cosine_decay_schedule(peak, steps, alpha=config.min_learning_rate_share)
    if not config.warmup_steps:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, peak, config.warmup_steps), main], [config.warmup_steps])


def decays(path: str) -> bool:
    """Weight decay falls on matrices, not on norms, biases and the two numbers of an activation (xIELU)."""
    return not path.endswith(("scale", "bias", "alpha_p", "alpha_n"))


def with_masked_decay(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer that sees parameters which do not decay as 0, for one that takes no mask for all of its parts and
    reads parameters for their decay alone."""

    def update(grads, state, params):
        decaying = map_with_path(lambda path, x: x if decays(path) else jnp.zeros_like(x), params)
        return optimizer.update(grads, state, decaying)

    return optax.GradientTransformation(optimizer.init, update)


def matrix_axes(path: str, parameter: jax.Array) -> MuonDimensionNumbers | None:
    """Which axes of a parameter are the inputs and outputs of a matrix that Muon orthogonalises; None: AdamW's.

    Layers (and experts) are stacked in front; a head axis belongs to the side of the head size.
    """
    layer, name = path.startswith("layers/") and path.endswith("/kernel"), path.split("/")[-2:][0]
    if not layer or name == "router":
        return None
    last = parameter.ndim - 1
    if name == "out":
        return MuonDimensionNumbers((last - 2, last - 1), last)
    if name in ("query", "key", "value"):
        return MuonDimensionNumbers(last - 2, (last - 1, last))
    return MuonDimensionNumbers(last - 1, last)


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Clip by global norm, then one of:

    adamw: AdamW with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101).
    muon: orthogonalised momentum (Newton-Schulz) for the matrices of the layers, AdamW for embeddings, norms and
    biases, at the same learning rate: updates have AdamW's root mean square of 0.2 (Liu et al. 2025, arXiv 2502.16982).
    """
    clip = optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm > 0 else optax.identity()

    def mask(params):
        return map_with_path(lambda path, _: decays(path), params)

    schedule = make_schedule(config)
    if config.optimizer == "muon":
        decay, axes = config.weight_decay, functools.partial(map_with_path, matrix_axes)
        main = with_masked_decay(muon(
            schedule, weight_decay=decay, adam_b1=config.b1, adam_b2=config.b2, adam_weight_decay=decay,
            muon_weight_dimension_numbers=axes, consistent_rms=0.2,
        ))  # fmt: skip
    else:
        main = optax.adamw(
            schedule, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=mask
        )
    return optax.chain(clip, main)


def make_critic_optimizer(config: Config) -> optax.GradientTransformation:
    """The run's optimizer at the critic's learning rate."""
    rate = settings_of(config.algo, PpoConfig).critic_learning_rate
    return make_optimizer(dataclasses.replace(config.optim, learning_rate=rate))
