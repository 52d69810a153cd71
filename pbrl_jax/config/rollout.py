"""Settings of sampling; `config.tree` holds the whole tree."""

from dataclasses import dataclass
from typing import Literal

from pbrl_jax.config.fields import identity, operational


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled."""

    max_prompt_length: int = identity(64, at_least=1)
    """Longest prompt; a longer one is an error at load, or dropped (`data.overlong_prompts`)."""
    max_completion_length: int = identity(64, at_least=1)
    """Longest response, R."""
    temperature: float = identity(1.0, at_least=0)
    """Sampling temperature; log-probs are those of the tempered distribution."""
    top_p: float = identity(1.0, at_least=1e-06, at_most=1)
    """Nucleus mass; 1 is off."""
    top_k: int = identity(0, at_least=0)
    """Candidates kept; 0 is off."""
    weights: Literal["whole", "as_trained"] = operational("whole")
    """How the policy's matrices lie while it decodes: whole (in the compute type, copied once a rollout to every device
    that mesh.fsdp shares them over) or as_trained (they stay shared: less memory, and exchanged at every token)."""
    slots: int = operational(0, at_least=0)
    """Rows that decode at a time, on all devices; when one ends, the next takes its place. 0: all, or as many as have
    room in memory; what was chosen is saved with the run and used again. A fused step decodes all its rows together."""
    segment_length: int = operational(128, at_least=1, at_most=128)
    """Tokens decoded between two looks at the outside (signals, early exit); at most 128."""
