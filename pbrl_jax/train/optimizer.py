"""The optax chain of a run: clip, AdamW, schedule."""

import optax

from pbrl_jax.core.config import OptimConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.trees import map_with_path

SCHEDULES = ("constant", "linear", "cosine")


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
    """Weight decay falls on matrices, not on norms and biases."""
    return not path.endswith(("scale", "bias"))


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""
    clip = optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm > 0 else optax.identity()
    adamw = optax.adamw(
        make_schedule(config),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=lambda params: map_with_path(lambda path, _: decays(path), params),
    )
    return optax.chain(clip, adamw)
