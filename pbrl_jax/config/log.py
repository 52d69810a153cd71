"""Settings of logs; `config.tree` holds the whole tree."""

from dataclasses import dataclass

from pbrl_jax.config.fields import operational


@dataclass(frozen=True)
class LogConfig:
    """What is written beside the metrics."""

    tensorboard: bool = operational(True)
    """Write TensorBoard event files."""
    wandb: str = operational("")
    """Weights & Biases project that gets the metrics too (pip install -e '.[wandb]'); empty is off."""
    trackio: str = operational("")
    """trackio project that gets the metrics too (pip install -e '.[trackio]'); empty is off."""
    mlflow: str = operational("")
    """MLflow experiment that gets the metrics too (pip install -e '.[mlflow]'); empty is off."""
    entropy: bool = operational(True)
    """Log the entropy of the policy; costs one more pass over the logits."""
    samples_per_step: int = operational(8, at_least=0)
    """Responses written to samples/ at each logging step, round-robin over languages."""
    compilation_cache: str = operational("~/.cache/pbrl_jax/xla")
    """Folder of the persistent compilation cache; empty is off. JAX_COMPILATION_CACHE_DIR comes before the default."""
    slow_phase_seconds: int = operational(900, at_least=0)
    """Say which phase (generate, reward, update, save, evaluate) is slow, with the stacks of all threads, when one
    takes longer; 0 never says it."""  # ASSUMED
