"""Rewards on the device, from sampled tokens: what the fused step scores without decoding text.

For policies and encoders that share a tokenizer. What the host path does on text happens here on tokens: the answer
part begins at the last occurrence of the language's answer phrase, and the language gate looks every token up in a
table. Sampled tokens need not be the canonical tokenisation of their text; `tests/train/test_fused.py` measures the
share of rows in which both paths differ.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.core.records import pytree
from pbrl_jax.rewards.language import Verdict


@pytree
class PivotBatch:
    """The references of P prompts on the device, and the prompt's language as a row of the token tables."""

    whole_PE: Float[Array, "P E"]
    reasoning_PE: Float[Array, "P E"]
    answer_PE: Float[Array, "P E"]
    has_P: Bool[Array, "P"]
    language_P: Int[Array, "P"]


@pytree
class TokenTables:
    """Per language: tokens that may stand in a response [languages, V], and the answer phrase [languages, M]."""

    allowed_LV: Bool[Array, "languages V"]
    marker_LM: Int[Array, "languages M"]
    eos_ids: Int[Array, "eos"]


@pytree
class TokenInputs:
    """B responses as a reward on the device receives them; `pivots` has one row per response."""

    tokens_BR: Int[Array, "B R"]
    lengths_B: Int[Array, "B"]
    pivots: PivotBatch
    tables: TokenTables
    encoder_params: Any

    @property
    def sampled_BR(self) -> Bool[Array, "B R"]:
        """Sampled tokens, the end of sequence included."""
        return jnp.arange(self.tokens_BR.shape[1])[None] < self.lengths_B[:, None]

    @property
    def text_BR(self) -> Bool[Array, "B R"]:
        """Sampled tokens that are text."""
        ended_BR = (self.tokens_BR[..., None] == self.tables.eos_ids[None, None]).any(axis=-1)
        return self.sampled_BR & ~ended_BR


def answer_start(tokens_BR, length_B, marker_BM) -> Int[Array, "B"]:
    """Index of the first token of the last answer phrase of each row; R where there is none."""
    B, R = tokens_BR.shape
    M = marker_BM.shape[1]
    padded = jnp.pad(tokens_BR, ((0, 0), (0, M)), constant_values=-2)
    windows_BRM = jnp.stack([padded[:, shift : shift + R] for shift in range(M)], axis=-1)
    wanted_B1M = marker_BM[:, None]
    match_BR = ((windows_BRM == wanted_B1M) | (wanted_B1M < 0)).all(axis=-1)
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
    moved_BR = jnp.minimum(slot_1R + start_B1, R - 1)
    answer_BR = jnp.take_along_axis(tokens_BR, moved_BR, axis=1)
    answer_mask_BR = jnp.take_along_axis(text_BR, moved_BR, axis=1) & (slot_1R + start_B1 < R)
    return ((tokens_BR, text_BR & (slot_1R < start_B1)), (answer_BR, answer_mask_BR))


def token_verdict(inputs: TokenInputs) -> Verdict:
    """Whether every sampled token belongs to the prompt's language; the twin of language.token_gate."""
    allowed_BR = inputs.tables.allowed_LV[inputs.pivots.language_P[:, None], inputs.tokens_BR]
    right_B = (allowed_BR | ~inputs.sampled_BR).all(axis=1)
    return Verdict(right_B.astype(jnp.float32), right_B)
