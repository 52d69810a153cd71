"""Settings of the optimizer; `config.tree` holds the whole tree."""

from dataclasses import dataclass
from typing import Literal

from pbrl_jax.config.fields import identity


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule."""

    optimizer: Literal["adamw", "muon"] = identity("adamw")
    """adamw, or muon (matrices of the layers by Muon, everything else by AdamW at the same learning rate)."""
    learning_rate: float = identity(1e-6, at_least=0, at_most=1)
    """Peak learning rate."""  # ASSUMED: not stated in the material at hand
    schedule: Literal["constant", "linear", "cosine"] = identity("constant")
    """constant, linear or cosine, after the warm-up."""
    warmup_steps: int = identity(0, at_least=0)
    """Steps of linear warm-up."""
    schedule_steps: int = identity(0, at_least=0, only_with=("schedule", "linear", "cosine"))
    """Length of the schedule, independent of max_steps, which may change; 0 only for constant."""
    min_learning_rate_share: float = identity(0.0, at_least=0, at_most=1, only_with=("schedule", "linear", "cosine"))
    """Learning rate at the end of a decaying schedule, as a share of the peak."""
    weight_decay: float = identity(0.0, at_least=0, at_most=1)
    """Decoupled weight decay."""
    b1: float = identity(0.9, at_least=0, below=1)
    """Decay of AdamW's first moment; that of Muon's matrices is 0.95."""
    b2: float = identity(0.999, at_least=0, below=1)
    """Decay of the second moment."""
    eps: float = identity(1e-8, above=0, at_most=1, only_with=("optimizer", "adamw"))
    """Adam's epsilon."""
    max_grad_norm: float = identity(1.0, at_least=0)
    """Largest global gradient norm, to which gradients are clipped; 0: off."""
