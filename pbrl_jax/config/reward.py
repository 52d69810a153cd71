"""Settings that all rewards share; a single reward's own settings are in its file, in a subclass."""

from dataclasses import dataclass
from typing import Literal

from pbrl_jax.config.fields import identity, operational


@dataclass(frozen=True)
class RewardConfig:
    """The reward of a response."""

    functions: tuple[str, ...] = identity(("cosine",))
    """Reward functions, whose weighted scores are summed; your own function is given by import path and has TRL's
    signature."""
    reward_weights: tuple[float, ...] = identity((1.0,))
    """One weight per function; 0 only logs it."""
    parts: Literal["split", "whole", "reasoning", "answer"] = identity("split")
    """What is scored: split (answer and reasoning separately), whole (the whole response), or one part only: reasoning
    or answer. With split, `comet` scores the answer, `alignment` the reasoning, and `hybrid` uses one of them for each
    part."""
    language_gate: Literal["hard", "penalty", "soft", "scheduled", "tokens", "off"] = identity("hard")
    """Effect of a response in the wrong language: hard (languages of reasoning and answer are identified separately; a
    wrong one gives `rejected_value`), tokens (as hard, but every token must belong to the language; for closed
    vocabularies), penalty (`gate_penalty` is subtracted), soft (the value moves towards `rejected_value` by the share
    of letters in other languages), scheduled (soft, introduced over `gate_schedule_steps`), off."""
    rejected_value: float = identity(-0.2, only_with=("language_gate", "hard", "tokens", "soft", "scheduled"))
    """Value of a response in the wrong language, and lower bound of all others: values that penalties would take below
    it stay above it, in the same order. Choose it below what your functions give an honest attempt."""
    # ASSUMED: the paper names no language term
    gate_share: float = identity(
        0.8, above=0, at_most=1, only_with=("language_gate", "hard", "penalty", "soft", "scheduled")
    )
    """Share of a part's letters that must be in the prompt's language for the part to pass."""  # ASSUMED
    gate_penalty: float = identity(
        0.5, at_least=0, only_with=("language_gate", "penalty"), note="it is taken away, so a negative one would reward"
    )
    """language_gate penalty: subtracted from the value of a response in the wrong language."""  # ASSUMED
    gate_schedule_steps: int = identity(100, at_least=0, only_with=("language_gate", "scheduled"))
    """language_gate scheduled: steps from no effect to the full effect of soft."""  # ASSUMED
    references: Literal["max", "mean"] = identity("max")
    """For a prompt with several references: max or mean of the similarities."""  # ASSUMED: not stated
    final_weights: tuple[float, ...] = identity(())
    """Curriculum: final values of reward_weights, for example to move from the pivot's reward to verifiable answers;
    empty: the weights are constant."""
    curriculum_start: int = identity(0, at_least=0, only_with=("final_weights",))
    """Optimizer steps before the weights begin to change."""
    curriculum_steps: int = identity(100, at_least=1, only_with=("final_weights",))
    """Steps over which the weights change."""  # ASSUMED: the paper names a curriculum as future work
    curriculum_shape: Literal["linear", "cosine"] = identity("linear", only_with=("final_weights",))
    """Interpolation of the weights: linear or cosine."""
    timeout: float = operational(600.0, at_least=0)
    """Seconds that your own reward function may take for one batch; after that its rows are invalid. 0: no limit."""
