"""Tokens back to text: the one door from the device to strings."""

import numpy as np

from pbrl_jax.core.records import Rollout
from pbrl_jax.text.tokenizers import Tokenizer


def completions(rollout: Rollout, tokenizer: Tokenizer) -> list[str]:
    """The text of each row, without the end of sequence."""
    tokens, lengths = np.asarray(rollout.tokens_BR), np.asarray(rollout.lengths_B)
    ends = set(tokenizer.eos_ids)
    rows = []
    for row, length in zip(tokens, lengths, strict=True):
        ids = [int(token) for token in row[:length]]
        rows.append(tokenizer.decode(ids[:-1] if ids and ids[-1] in ends else ids))
    return rows
