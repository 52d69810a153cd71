"""Semantic similarity to the English reference: cosine of sentence vectors, in one compiled program.

The paper's embedding reward, R = cos(f(response), f(reference)) [paper, reward families], of the whole response or of
reasoning and answer separately. The pivot's vectors are cached; only responses are encoded.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.core.records import Scores
from pbrl_jax.models.encoder import encode, encode_segments, encodes_segments
from pbrl_jax.models.specs import EncoderSpec, TextEncoderSpec
from pbrl_jax.rewards.inputs import RewardInputs, part_names, part_vectors, response_texts
from pbrl_jax.rewards.similarity import (
    PartsConfig,
    SimilarityConfig,
    combine_parts,
    load_baselines,
    reference_cosine,
    scale_similarity,
)
from pbrl_jax.rewards.tokens import TokenInputs, token_parts
from pbrl_jax.weights.encoders import Encoder


@dataclass(frozen=True)
class CosineConfig(SimilarityConfig, PartsConfig):
    """Settings of `cosine`."""


def cosine_reward(
    encoder_params: Any,
    tokens_BS: Int[Array, "B S"],
    mask_BS: Bool[Array, "B S"],
    pivot_BE: Float[Array, "B E"],
    *,
    spec: TextEncoderSpec,
) -> Float[Array, "B"]:
    """Cosine of each text with its pivot, in [-1, 1]; 0 for a text without tokens.

    Args:
      encoder_params: the encoder's parameters.
      tokens_BS: right-padded texts in the encoder's tokens; mask_BS is true for tokens that are not padding.
      pivot_BE: unit vectors of the references.
      spec: the encoder's shape; static.
    """
    vector_BE = encode(encoder_params, tokens_BS, mask_BS, spec=spec)
    return jnp.where(mask_BS.any(axis=1), jnp.sum(vector_BE * pivot_BE, axis=-1), 0.0)


def hybrid_scores(
    encoder_params: Any,
    parts: tuple[tuple[jax.Array, jax.Array], ...],
    pivots: tuple[jax.Array, ...],
    *,
    spec: TextEncoderSpec,
    config: CosineConfig,
    has_BK: Bool[Array, "B K"] | None = None,
    baseline_B: Float[Array, "B"] | None = None,
) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
    """(similarity of B responses, its named parts), on the scale of `config.similarity`.

    With `config.parts` split, `parts` and `pivots` hold reasoning and answer, and similarity.combine_parts gives the
    value; an absent part scores 0. Otherwise each holds one part.

    Args:
      parts: (tokens [B, S], mask [B, S]) of each part, with the same S.
      pivots: unit vectors of each part's reference, [B, E], or of K references, [B, K, E].
      has_BK: with K references, which of them exist; `config.references` reduces their similarities.
      baseline_B: with similarity calibrated, the mean cosine of mismatched pairs of each row's language.
    """
    tokens = jnp.concatenate([part[0] for part in parts])
    mask = jnp.concatenate([part[1] for part in parts])
    present = mask.any(axis=1)
    if pivots[0].ndim == 2:
        cosine = cosine_reward(encoder_params, tokens, mask, jnp.concatenate(pivots), spec=spec)
        return scaled_scores(cosine, present, config=config, baseline_B=baseline_B)
    vectors = encode(encoder_params, tokens, mask, spec=spec)
    return vector_scores(vectors, present, pivots, config=config, has_BK=has_BK, baseline_B=baseline_B)


def vector_scores(
    vectors: jax.Array,
    present: jax.Array,
    pivots: tuple[jax.Array, ...],
    *,
    config: CosineConfig,
    has_BK: Bool[Array, "B K"] | None = None,
    baseline_B: Float[Array, "B"] | None = None,
) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
    """hybrid_scores of encoded parts.

    Args:
      vectors: unit vectors [parts * B, E], one part after the other.
      present: [parts * B]; false for an empty text.
    """
    pivot = jnp.concatenate(pivots)
    if has_BK is None:
        cosine = jnp.sum(vectors * pivot, axis=-1)
    else:
        cosine = reference_cosine(vectors, pivot, jnp.tile(has_BK, (len(pivots), 1)), config.references)
    return scaled_scores(cosine, present, config=config, baseline_B=baseline_B)


def scaled_scores(cosine, present, *, config: CosineConfig, baseline_B=None):
    """(values [B], named parts) of the cosines [parts * B] of all parts; an absent part scores 0."""
    count = len(part_names(config.parts))
    baseline = None if baseline_B is None else jnp.tile(baseline_B, count)
    scores = jnp.split(jnp.where(present, scale_similarity(cosine, config, baseline), 0.0), count)
    if config.parts != "split":
        return scores[0], {config.parts: scores[0]}
    reasoning, answer = scores
    return combine_parts(reasoning, answer, config), {"reasoning": reasoning, "answer": answer}


def make_token_cosine(config: CosineConfig, spec: TextEncoderSpec) -> Callable[[TokenInputs], Scores]:
    """The reward on the device: the encoder reads the sampled tokens; traceable."""

    def score(inputs: TokenInputs) -> Scores:
        parts, pivots = token_parts(inputs, config.parts), inputs.pivots
        references = (pivots.whole_PE,) if config.parts == "whole" else (pivots.reasoning_PE, pivots.answer_PE)
        if config.parts == "split" and encodes_segments(spec):
            vectors, present = _encoded_together(inputs, parts, spec)
            value_B, named = vector_scores(vectors, present, references, config=config)
        else:
            value_B, named = hybrid_scores(inputs.encoder_params, parts, references, spec=spec, config=config)
        return Scores(value_B, pivots.has_P & jnp.isfinite(value_B), named)

    return score


def _encoded_together(inputs: TokenInputs, parts, spec: EncoderSpec):
    """(vectors [2 B, E], which parts are not empty [2 B]). Reasoning and answer stay in one row as they were sampled,
    so that one row of R tokens is encoded instead of two."""
    lengths = [mask.sum(axis=1, keepdims=True) for _, mask in parts]
    slot_1R = jnp.arange(inputs.tokens_BR.shape[1])[None]
    segment_BR = (slot_1R >= lengths[0]).astype(jnp.int32)
    vectors = encode_segments(inputs.encoder_params, inputs.tokens_BR, slot_1R < sum(lengths), segment_BR, 2, spec=spec)
    return vectors, jnp.concatenate(lengths)[:, 0] > 0


@functools.cache
def compiled_hybrid(spec: TextEncoderSpec, config: CosineConfig):
    """hybrid_scores, compiled once per spec and config."""
    return jax.jit(functools.partial(hybrid_scores, spec=spec, config=config))


@functools.cache
def compiled_vector_scores(config: CosineConfig):
    """vector_scores, compiled once per config."""
    return jax.jit(functools.partial(vector_scores, config=config))


def make_cosine(config: CosineConfig, encoder: Encoder, languages: Sequence[str] = ()):
    """The reward `cosine` of decoded texts. Compiled once per length bucket.

    Texts longer than the encoder's maximum are embedded in chunks, as references are (`encoder_cut` marks them).

    Raises:
      ConfigError: similarity is calibrated, and there is no calibration of this encoder and these languages.
    """
    program, of_vectors = compiled_hybrid(encoder.spec, config), compiled_vector_scores(config)
    baselines = load_baselines(config, languages, encoder.key)

    def score(inputs: RewardInputs) -> Scores:
        parts = list(response_texts(inputs, config.parts).values())
        texts = [text for part in parts for text in part]
        tokens, mask, cut = encoder.tokenize(texts)
        # The mask of an empty text may hold the encoder's prefix.
        present = mask.any(axis=1) & np.array([bool(text.strip()) for text in texts])
        has = jnp.asarray(inputs.pivots.has_B)
        options: dict[str, Any] = {"has_BK": has} if has.ndim == 2 else {}
        if baselines is not None:
            options["baseline_B"] = jnp.asarray([baselines[prompt.language] for prompt in inputs.prompts], jnp.float32)
        pivots = tuple(jnp.asarray(pivot) for pivot in part_vectors(inputs.pivots, config.parts))
        if cut.any():
            value, named = of_vectors(jnp.asarray(encoder.embed(texts)), jnp.asarray(present), pivots, **options)
        else:
            pairs = zip(np.split(tokens, len(parts)), np.split(mask & present[:, None], len(parts)), strict=True)
            encoded = tuple((jnp.asarray(t), jnp.asarray(m)) for t, m in pairs)
            value, named = program(encoder.params, encoded, pivots, **options)
        named = named | {"encoder_cut": jnp.asarray(cut.reshape(len(parts), -1).any(axis=0), jnp.float32)}
        has_B = has.any(axis=1) if has.ndim == 2 else has
        return Scores(value, has_B & jnp.isfinite(value), named)

    return score
