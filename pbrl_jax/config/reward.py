"""Settings that every reward has; those of one alone stand in its file, in a subclass."""

from dataclasses import dataclass
from typing import Literal

from pbrl_jax.config.fields import identity, operational


@dataclass(frozen=True)
class RewardConfig:
    """What a response is worth."""

    functions: tuple[str, ...] = identity(("cosine",))
    """What is added up; a function of your own, by its import path, has TRL's signature."""
    reward_weights: tuple[float, ...] = identity((1.0,))
    """One weight per function; 0 only logs it."""
    parts: Literal["split", "whole", "reasoning", "answer"] = identity("split")
    """What is scored: split (answer and reasoning apart), whole (the whole response), or only one part, reasoning or
    answer. With split, `comet` scores the answer, `alignment` the reasoning, and `hybrid` gives each of its two
    functions its own part."""
    language_gate: Literal["hard", "penalty", "soft", "scheduled", "tokens", "off"] = identity("hard")
    """What finds a response in another language: hard (identification, reasoning and answer apart; such a response
    gets `rejected_value`), tokens (the same, but every token must belong to the language; for closed vocabularies),
    penalty (`gate_penalty` is taken from its value), soft (its value is moved towards `rejected_value` by the share of
    letters in other languages), scheduled (soft, closing over `gate_schedule_steps`), off."""
    rejected_value: float = identity(-0.2, only_with=("language_gate", "hard", "tokens", "soft", "scheduled"))
    """Value of a response in the wrong language, and the floor of all others: what penalties would take below it stays
    above it, in the same order. Keep it below what your functions give an honest attempt."""
    # ASSUMED: the paper names no language term
    gate_share: float = identity(
        0.8, above=0, at_most=1, only_with=("language_gate", "hard", "penalty", "soft", "scheduled")
    )
    """Share of a part's letters that must be in the prompt's language for it to count as right."""  # ASSUMED
    gate_penalty: float = identity(
        0.5, at_least=0, only_with=("language_gate", "penalty"), note="it is taken away, so a negative one would reward"
    )
    """language_gate penalty: taken from the value of a response in another language."""  # ASSUMED
    gate_schedule_steps: int = identity(100, at_least=0, only_with=("language_gate", "scheduled"))
    """language_gate scheduled: steps over which the gate closes, from no effect to that of soft."""  # ASSUMED
    references: Literal["max", "mean"] = identity("max")
    """Where a prompt has several references: the max or the mean of the similarities."""  # ASSUMED: not stated
    final_weights: tuple[float, ...] = identity(())
    """Curriculum: the weights that reward_weights move to, for example from the pivot's reward to that of verifiable
    answers; empty: they stay."""
    curriculum_start: int = identity(0, at_least=0, only_with=("final_weights",))
    """Optimizer steps before the weights begin to move."""
    curriculum_steps: int = identity(100, at_least=1, only_with=("final_weights",))
    """Steps over which they move."""  # ASSUMED: the paper names a curriculum as future work
    curriculum_shape: Literal["linear", "cosine"] = identity("linear", only_with=("final_weights",))
    """How they move: linear or cosine."""
    timeout: float = operational(600.0, at_least=0)
    """Seconds a reward function of the user's own may take for one batch; then its rows are invalid. 0: no limit."""
