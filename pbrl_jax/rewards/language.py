"""The language gate: is a response in the language of its prompt?

Without it an English reply beats every faithful reply, because it stands nearest to the English reference.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.rewards.inputs import RewardInputs
from pbrl_jax.text.langid import is_right_language


def identified_gate(inputs: RewardInputs, languages: Sequence[str]) -> np.ndarray:
    """True where the response is identified as its prompt's language, or is too short to identify, [B].

    English is always among the alternatives: it is the language of the references, whatever a run trains in.
    """
    alternatives = tuple(dict.fromkeys((*languages, "en")))
    right = [
        is_right_language(text, prompt.language, alternatives)
        for text, prompt in zip(inputs.completions, inputs.prompts, strict=True)
    ]
    return np.array([verdict is not False for verdict in right], bool)


def token_gate(inputs: RewardInputs, table: Mapping[str, np.ndarray]) -> np.ndarray:
    """True where every sampled token belongs to the prompt's language, [B] (see text.token_languages)."""
    tokens, lengths = np.asarray(inputs.tokens_BR), np.asarray(inputs.lengths_B)
    return np.array(
        [table[prompt.language][row[:length]].all()
         for prompt, row, length in zip(inputs.prompts, tokens, lengths, strict=True)],
        bool,
    )  # fmt: skip


def make_gate(name: str, languages: Sequence[str], table: Mapping[str, np.ndarray] | None):
    """The gate called `name`: RewardInputs -> bool [B].

    Raises:
      ConfigError: an unknown name, or `tokens` without a table.
    """
    if name == "off":
        return lambda inputs: np.ones(len(inputs.completions), bool)
    if name == "hard":
        return lambda inputs: identified_gate(inputs, languages)
    if name == "tokens" and table is not None:
        return lambda inputs: token_gate(inputs, table)
    if name == "tokens":
        raise ConfigError("reward.language_gate=tokens needs a source with text of each language; use hard or off.")
    raise ConfigError(f"reward.language_gate {name!r} is not one of hard, tokens, off.")
