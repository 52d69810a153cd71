"""The tokens of each language: a table for the language gate that judges every token, also on the device.

An identifier of whole phrases misses a single foreign word in a long response; this table checks every token. It suits
closed vocabularies, where each language's words are known (the quickstart); for open text use text.langid.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from pbrl_jax.text.tokenizers import Tokenizer


def token_language_table(
    tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]], textless: bool = True
) -> dict[str, np.ndarray]:
    """Language -> bool [V]: true for the tokens that are allowed in a response.

    A token belongs to a language if it occurs in texts of the language, or if it contains no letter (digits, operators,
    punctuation, spaces). End-of-sequence tokens belong to all languages.

    Args:
      tokenizer: the policy's.
      texts: language -> texts in that language only.
      textless: whether special tokens and parts of characters count as tokens without letters. False for a gate, as
        they may stand for any letter.
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
    """Token ids of each language's answer phrase inside a response, [languages, M], padded with -1."""
    ids = [tokenizer.encode(marker) for marker in markers.values()]
    width = max(len(row) for row in ids)
    table = np.full((len(ids), width), -1, np.int32)
    for row, row_ids in enumerate(ids):
        table[row, : len(row_ids)] = row_ids
    return table
