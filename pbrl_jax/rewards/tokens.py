"""Inputs of rewards on the device: the fused step scores sampled tokens without decoding them.

For policies and encoders that share a tokenizer. The host path works on text, this one on tokens: the answer part
begins at the last occurrence of the language's answer phrase, and the language gate looks up every token in a table.
Sampled tokens may differ from the canonical tokenisation of their text; `tests/train/test_fused.py` measures the share
of rows in which the two paths differ.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.core.records import pytree
from pbrl_jax.rewards.language import Verdict


@pytree
class PivotBatch:
    """The references of P prompts on the device, and the language of each prompt as its row in the token tables."""

    whole_PE: Float[Array, "P E"]
    reasoning_PE: Float[Array, "P E"]
    answer_PE: Float[Array, "P E"]
    has_P: Bool[Array, "P"]
    language_P: Int[Array, "P"]


@pytree
class TokenTables:
    """Per language: the tokens allowed in a response [languages, V] and the answer phrase [languages, M], padded with
    negative ids."""

    allowed_LV: Bool[Array, "languages V"]
    marker_LM: Int[Array, "languages M"]
    eos_ids: Int[Array, "eos"]


@pytree
class TokenInputs:
    """B responses on the device; `pivots` has one row per response."""

    tokens_BR: Int[Array, "B R"]
    lengths_B: Int[Array, "B"]
    pivots: PivotBatch
    tables: TokenTables
    encoder_params: Any

    @property
    def sampled_BR(self) -> Bool[Array, "B R"]:
        """True for sampled tokens, including the end of sequence."""
        return jnp.arange(self.tokens_BR.shape[1])[None] < self.lengths_B[:, None]

    @property
    def text_BR(self) -> Bool[Array, "B R"]:
        """True for sampled tokens, without the end of sequence."""
        ended_BR = (self.tokens_BR[..., None] == self.tables.eos_ids[None, None]).any(axis=-1)
        return self.sampled_BR & ~ended_BR


def answer_start(tokens_BR, length_B, marker_BM) -> Int[Array, "B"]:
    """Index of the first token of the last answer phrase of each row; R where there is none."""
    B, R = tokens_BR.shape
    M = marker_BM.shape[1]
    padded = jnp.pad(tokens_BR, ((0, 0), (0, M)), constant_values=-2)
    windows_BRM = jnp.stack([padded[:, shift : shift + R] for shift in range(M)], axis=-1)
    marker_B1M = marker_BM[:, None]
    match_BR = ((windows_BRM == marker_B1M) | (marker_B1M < 0)).all(axis=-1)
    inside_BR = jnp.arange(R)[None] + (marker_BM >= 0).sum(axis=1, keepdims=True) <= length_B[:, None]
    place_BR = jnp.where(match_BR & inside_BR, jnp.arange(R)[None], -1)
    last_B = place_BR.max(axis=1)
    return jnp.where(last_B < 0, R, last_B)


def token_parts(inputs: TokenInputs, parts: str) -> tuple[tuple[Array, Array], ...]:
    """The parts of each response as encoder inputs, ((tokens [B, R], mask [B, R]), ...): `whole`, or `split`."""
    tokens_BR, text_BR = inputs.tokens_BR, inputs.text_BR
    if parts == "whole":
        return ((tokens_BR, text_BR),)
    R = tokens_BR.shape[1]
    slot_1R = jnp.arange(R)[None]
    marker_BM = inputs.tables.marker_LM[inputs.pivots.language_P]
    start_B1 = answer_start(tokens_BR, inputs.lengths_B, marker_BM)[:, None]
    source_BR = jnp.minimum(slot_1R + start_B1, R - 1)
    answer_BR = jnp.take_along_axis(tokens_BR, source_BR, axis=1)
    answer_mask_BR = jnp.take_along_axis(text_BR, source_BR, axis=1) & (slot_1R + start_B1 < R)
    return ((tokens_BR, text_BR & (slot_1R < start_B1)), (answer_BR, answer_mask_BR))


def token_verdict(inputs: TokenInputs) -> Verdict:
    """Whether every sampled token belongs to the prompt's language; language.token_gate on the device."""
    allowed_BR = inputs.tables.allowed_LV[inputs.pivots.language_P[:, None], inputs.tokens_BR]
    right_B = (allowed_BR | ~inputs.sampled_BR).all(axis=1)
    return Verdict(right_B.astype(jnp.float32), right_B)
