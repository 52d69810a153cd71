"""Settings of methods beside the main algorithm: adapters and preference pairs; `config.tree` holds the whole tree."""

from dataclasses import dataclass

from pbrl_jax.config.fields import identity, operational


@dataclass(frozen=True)
class LoraConfig:
    rank: int = identity(0)
    """Rank of the adapters that are trained in place of the weights, by every algorithm; 0: the weights are trained."""
    alpha: float = identity(32.0)
    """Adapters are scaled by alpha / rank."""  # ASSUMED: not stated; twice a rank of 16, as is usual
    targets: tuple[str, ...] = identity(("query", "key", "value", "out", "gate", "up", "down"))
    """Projections that get adapters."""
    quantization: str = identity("none")
    """Type that the frozen kernels of all projections are held in (QLoRA): none, int8, int4 or nf4; needs qwix."""
    tile_size: int = identity(64)
    """Inputs of a kernel that share a scale where it is quantised."""


@dataclass(frozen=True)
class DpoConfig:
    path: str = operational("")
    """Scored responses to rank: JSON lines as `pbrl dpo` writes them; empty: sample them from the start policy."""
    steps: int = identity(200)
    """Optimizer steps of `pbrl dpo`."""
    batch_size: int = identity(32)
    """Pairs per step."""
    learning_rate: float = identity(5e-7)
    """Peak learning rate, cosine to zero."""  # ASSUMED: usual for DPO; the paper does not state it
    warmup_steps: int = identity(10)
    """Steps of linear warm-up."""
    beta: float = identity(0.1)
    """Weight of the implicit KL to the start policy."""  # ASSUMED: that of the DPO paper
    loss_type: str = identity("sigmoid")
    """sigmoid (DPO) or ipo."""
    label_smoothing: float = identity(0.0)
    """Share of pairs that are taken to be the wrong way round (loss_type sigmoid)."""
    pairs: str = identity("all")
    """Which pairs a group gives: all (every two responses whose rewards differ by min_margin; MAPO) or best_worst."""
    min_margin: float = identity(0.05)
    """Least difference of rewards between a chosen and a rejected response."""  # ASSUMED
    prompts: int = identity(512)
    """Prompts whose responses are sampled and ranked, algo.num_generations of each."""
