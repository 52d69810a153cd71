"""Settings of logs; `config.tree` holds the whole tree."""

from dataclasses import dataclass

from pbrl_jax.config.fields import operational


@dataclass(frozen=True)
class LogConfig:
    """Logs and other output of a run."""

    tensorboard: bool = operational(True)
    """Write TensorBoard event files."""
    wandb: str = operational("")
    """Weights & Biases project to log to (pip install -e '.[wandb]'); empty: off."""
    trackio: str = operational("")
    """trackio project to log to (pip install -e '.[trackio]'); empty: off."""
    mlflow: str = operational("")
    """MLflow experiment to log to (pip install -e '.[mlflow]'); empty: off."""
    entropy: bool = operational(True)
    """Log the policy's entropy; costs one more pass over the logits."""
    samples_per_step: int = operational(8, at_least=0)
    """Responses of a rollout written to samples/ where one of its updates is a logging step, round-robin over
    languages; the file has the number of its first update."""
    compilation_cache: str = operational("~/.cache/pbrl_jax/xla")
    """Folder of the persistent compilation cache; empty: off. JAX_COMPILATION_CACHE_DIR overrides the default. Several
    hosts need one that they share (gs://): JAX lets only the first of them write."""
    slow_phase_seconds: int = operational(900, at_least=0)
    """Report a phase (generate, reward, update, save, evaluate) that takes longer, with the stacks of all threads; 0:
    never."""  # ASSUMED
