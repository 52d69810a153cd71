"""The language gate: whether a response is in the language of its prompt, and its value if it is not.

Without the gate an English response would score highest, as it is most similar to the English reference. Reasoning and
answer are judged separately, so that a short part in another language is not outweighed by the longer one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pbrl_jax.config.checks import check_section
from pbrl_jax.config.tree import RewardConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.records import AnyArray
from pbrl_jax.rewards.inputs import RewardInputs
from pbrl_jax.text.answers import split_response
from pbrl_jax.text.langid import Alternatives, check_identifiable, foreign_tail, language_share

IDENTIFIED_GATES = ("hard", "penalty", "soft", "scheduled")


class Verdict(NamedTuple):
    """Of B responses: `share_B`, the share in [0, 1] of the worst part that is in the prompt's language (1 if it is too
    short to identify), and `right_B`, whether the response passes."""

    share_B: AnyArray
    right_B: AnyArray


def response_share(text: str, language: str, languages: Alternatives) -> float:
    """Share in [0, 1] of the worst part of a response that is in `language`.

    The parts are the reasoning and the answer. A part whose last sentence is in another language has share 0. A part
    too short to identify is left out, unless it is in another script or contains English words. If both are too short,
    the whole text is judged; if that is too short as well, the share is 1. Words count at any position
    (pbrl_jax.text.words).
    """
    for parts in (split_response(text, language), (text,)):
        shares = [share for part in parts if (share := _part_share(part, language, languages)) is not None]
        if shares:
            return min(shares)
    return 1.0


def _part_share(text: str, language: str, languages: Alternatives) -> float | None:
    share = language_share(text, language, languages)
    return 0.0 if share is not None and foreign_tail(text, language, languages) else share


def identified_gate(inputs: RewardInputs, languages: Alternatives, share: float) -> Verdict:
    """The verdict by language identification; a response passes with a share of at least `share`.

    English is always among the alternatives, as the references are English.
    """
    alternatives = tuple(dict.fromkeys((*languages, "en")))
    share_B = np.array([
        response_share(text, prompt.language, alternatives)
        for text, prompt in zip(inputs.completions, inputs.prompts, strict=True)
    ], np.float32)  # fmt: skip
    return Verdict(share_B, share_B >= share)


def token_gate(inputs: RewardInputs, table: Mapping[str, np.ndarray]) -> np.ndarray:
    """True where every sampled token belongs to the prompt's language, [B] (see text.token_languages)."""
    tokens, lengths = np.asarray(inputs.tokens_BR), np.asarray(inputs.lengths_B)
    rows = zip(inputs.prompts, tokens, lengths, strict=True)
    return np.array([table[prompt.language][row[:length]].all() for prompt, row, length in rows], bool)


def _all_or_nothing(right_B: np.ndarray) -> Verdict:
    return Verdict(right_B.astype(np.float32), right_B)


def make_gate(
    config: RewardConfig,
    languages: Sequence[str],
    table: Mapping[str, np.ndarray] | None,
    pairs: Sequence[tuple[str, str]] = (),
) -> Callable[[RewardInputs], Verdict]:
    """The gate of `config.language_gate`; `pairs` are languages that identification treats as one.

    Raises:
      ConfigError: an unknown name, `tokens` without a table, or a language that cannot be identified.
    """
    check_section("reward", config)
    if config.language_gate == "off":
        return lambda inputs: _all_or_nothing(np.ones(len(inputs.prompts), bool))
    if config.language_gate in IDENTIFIED_GATES:
        check_identifiable(languages)
        return lambda inputs: identified_gate(inputs, (*languages, *pairs), config.gate_share)
    if table is None:
        raise ConfigError("reward.language_gate=tokens needs a source with text of each language; use hard or off.")
    return lambda inputs: _all_or_nothing(token_gate(inputs, table))


def apply_gate(config: RewardConfig, value_B: Float[Array, "B"], verdict: Verdict, step: int) -> Float[Array, "B"]:
    """Values after the gate.

    hard and tokens: `rejected_value` for rejected rows. penalty: their value minus `gate_penalty`. soft: the value
    moves towards `rejected_value` by the share in other languages, and never upwards. scheduled: as soft, with that
    share times a weight that rises from 0 to 1 over `gate_schedule_steps` as a half cosine (AdaMame's schedule).

    Args:
      value_B: values before the gate.
      step: the optimizer step, from 0.
    """
    right_B, share_B = jnp.asarray(verdict.right_B), jnp.asarray(verdict.share_B)
    if config.language_gate == "off":
        return value_B
    if config.language_gate == "penalty":
        return jnp.where(right_B, value_B, value_B - config.gate_penalty)
    if config.language_gate in ("soft", "scheduled"):
        closed = 1.0
        if config.language_gate == "scheduled" and config.gate_schedule_steps:
            closed = 0.5 - 0.5 * math.cos(math.pi * min(step / config.gate_schedule_steps, 1.0))
        foreign_B = closed * (1 - share_B)  # in this form a share of 0 gives exactly `rejected_value`
        return (1 - foreign_B) * value_B + foreign_B * jnp.minimum(value_B, config.rejected_value)
    return jnp.where(right_B, value_B, config.rejected_value)
