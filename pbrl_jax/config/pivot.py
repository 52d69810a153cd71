"""Settings of the English references; `config.tree` holds the whole tree."""

from dataclasses import dataclass
from typing import Literal

from pbrl_jax.config.fields import identity, operational
from pbrl_jax.config.older import takes_old_names


@takes_old_names("pivot")
@dataclass(frozen=True)
class PivotConfig:
    """The English references and where they come from."""

    source: Literal["dataset", "policy", "file", "endpoint"] = identity("dataset")
    """Source of English references: dataset (the data set's own), policy (written by the start policy), file, or
    endpoint (written by the model of section endpoint)."""
    store: str = operational("")
    """Folder of the pivot store; empty: `pivots/` in the work directory."""
    file: str = operational("", only_with=("source", "file"))
    """source file: JSON lines file of references."""
    max_completion_length: int = identity(64, at_least=1)
    """Longest reference that the expert may write, in tokens."""
    temperature: float = identity(0.0, at_least=0)
    """Sampling temperature of the expert; 0 is greedy."""  # ASSUMED: not stated in the material at hand
    keep_wrong: bool = identity(False)
    """Keep references whose answer differs from a known gold answer."""  # ASSUMED: not stated
    samples: int = identity(1, at_least=1)
    """References that the expert writes for each question; more than one needs a temperature."""
    min_agreement: float = identity(0.0, at_least=0, at_most=1)
    """Least share of a question's samples that agree on the most frequent answer; other questions are dropped."""
    references: int = identity(1, at_least=1)
    """References kept for each question, out of those with the most frequent answer; see reward.references."""
