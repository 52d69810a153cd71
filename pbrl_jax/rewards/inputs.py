"""What every reward receives, and the record that all of them read pivots from."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pbrl_jax.core.records import Prompt


class PivotVectors(NamedTuple):
    """Unit vectors of the references of B rows, [B, E] each: the whole text and its two parts.

    `has_B` is false where a row has no reference; its vectors are zeros and its score is invalid. Where rows have up
    to K references the vectors are [B, K, E] and `has_B` is [B, K].
    """

    whole_BE: np.ndarray
    reasoning_BE: np.ndarray
    answer_BE: np.ndarray
    has_B: np.ndarray

    def rows(self, index: np.ndarray) -> "PivotVectors":
        """The vectors of chosen rows."""
        return PivotVectors(*(field[index] for field in self))


class RewardInputs(NamedTuple):
    """B rows on the host: the prompt of each row, its completion as text and as tokens, and its pivot's vectors."""

    prompts: Sequence[Prompt]
    completions: Sequence[str]
    tokens_BR: np.ndarray
    lengths_B: np.ndarray
    pivots: PivotVectors
    step: int
