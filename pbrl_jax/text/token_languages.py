"""Which tokens belong to which language: a table that gates a response token by token, on the device too.

A phrase-level identifier does not see a single foreign word in a long response; this table looks at every token. It
suits closed vocabularies, where each language's words are known (the quickstart); for open text use text.langid.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from pbrl_jax.text.tokenizers import Tokenizer


def token_language_table(
    tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]], textless: bool = True
) -> dict[str, np.ndarray]:
    """For each language a bool vector over the vocabulary: true where a token may stand in a response.

    A token belongs to a language when it occurs in that language's texts, or when it carries no letter (digits,
    operators, punctuation, spaces); ends of sequence belong to all.

    Args:
      tokenizer: the policy's.
      texts: language -> text in that language and in no other.
      textless: whether special tokens, the unknown one among them, and parts of characters carry no letter. They may
        stand for any letter, so that a gate must not let them pass.
    """
    pieces = tokenizer.pieces()
    neutral = np.array([not any(c.isalpha() for c in piece) for piece in pieces], bool)
    if not textless:
        neutral &= np.array([bool(piece) and "\ufffd" not in piece for piece in pieces], bool)
    neutral[list(tokenizer.eos_ids)] = True
    table = {}
    for language, lines in texts.items():
        allowed = neutral.copy()
        for ids in tokenizer.encode_batch(list(lines)):
            allowed[ids] = True
        table[language] = allowed
    return table


def marker_tokens(tokenizer: Tokenizer, markers: Mapping[str, str]) -> np.ndarray:
    """Token ids of each language's answer phrase as it stands inside a response, [languages, M], padded with -1."""
    ids = [tokenizer.encode(marker) for marker in markers.values()]
    width = max(len(row) for row in ids)
    table = np.full((len(ids), width), -1, np.int32)
    for row, row_ids in enumerate(ids):
        table[row, : len(row_ids)] = row_ids
    return table
