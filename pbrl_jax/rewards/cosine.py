"""Semantic similarity to the English reference: cosine of sentence vectors, in one compiled program.

The paper's embedding reward, R = cos(f(response), f(reference)) [paper, reward families], on the whole response or on
reasoning and answer apart. The pivot's vectors are cached; only responses are encoded.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.assets.encoder import Encoder
from pbrl_jax.core.config import RewardConfig
from pbrl_jax.core.records import Scores
from pbrl_jax.models.encoder import encode
from pbrl_jax.models.specs import EncoderSpec
from pbrl_jax.rewards.inputs import RewardInputs
from pbrl_jax.text.answers import split_response


def cosine_reward(
    encoder_params: Any,
    tokens_BS: Int[Array, "B S"],
    mask_BS: Bool[Array, "B S"],
    pivot_BE: Float[Array, "B E"],
    *,
    spec: EncoderSpec,
) -> Float[Array, "B"]:
    """Cosine of each text with its pivot, in [-1, 1]; 0 for a text without tokens.

    Args:
      encoder_params: the encoder's parameters.
      tokens_BS: right-padded texts in the encoder's tokens; mask_BS marks the real ones.
      pivot_BE: unit vectors of the references.
      spec: static.
    """
    vector_BE = encode(encoder_params, tokens_BS, mask_BS, spec=spec)
    return jnp.where(mask_BS.any(axis=1), jnp.sum(vector_BE * pivot_BE, axis=-1), 0.0)


def hybrid_scores(
    encoder_params: Any,
    parts: tuple[tuple[jax.Array, jax.Array], ...],
    pivots: tuple[jax.Array, ...],
    *,
    spec: EncoderSpec,
    config: RewardConfig,
) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
    """The similarity of B responses, and its parts.

    With `config.parts` split, `parts` and `pivots` are those of reasoning and answer and the value is
    (1 - alpha) * reasoning + alpha * answer, alpha = config.answer_weight; an absent part scores 0. With whole there
    is one of each.

    Args:
      parts: (tokens [B, S], mask [B, S]) of each part, all of one S.
      pivots: unit vectors [B, E] of each part's reference.
    """
    tokens = jnp.concatenate([part[0] for part in parts])
    mask = jnp.concatenate([part[1] for part in parts])
    scores = jnp.split(cosine_reward(encoder_params, tokens, mask, jnp.concatenate(pivots), spec=spec), len(parts))
    if config.parts == "whole":
        return scores[0], {"whole": scores[0]}
    reasoning, answer = scores
    value = (1 - config.answer_weight) * reasoning + config.answer_weight * answer
    return value, {"reasoning": reasoning, "answer": answer}


@functools.cache
def compiled_hybrid(spec: EncoderSpec, config: RewardConfig):
    """hybrid_scores as a compiled program of a spec and a config."""
    return jax.jit(functools.partial(hybrid_scores, spec=spec, config=config))


def make_cosine(config: RewardConfig, encoder: Encoder):
    """The reward on the host path: texts in, Scores out. Compiled once per length bucket."""
    program = compiled_hybrid(encoder.spec, config)

    def score(inputs: RewardInputs) -> Scores:
        if config.parts == "whole":
            texts, pivots = [list(inputs.completions)], (inputs.pivots.whole_BE,)
        else:
            split = [
                split_response(text, prompt.language)
                for text, prompt in zip(inputs.completions, inputs.prompts, strict=True)
            ]
            texts = [[reasoning for reasoning, _ in split], [answer for _, answer in split]]
            pivots = (inputs.pivots.reasoning_BE, inputs.pivots.answer_BE)
        tokens, mask, cut = encoder.tokenize([text for part in texts for text in part])
        # A prefix alone is not a text.
        mask &= np.array([bool(text.strip()) for part in texts for text in part])[:, None]
        count = len(texts)
        parts = tuple(
            (jnp.asarray(t), jnp.asarray(m))
            for t, m in zip(np.split(tokens, count), np.split(mask, count), strict=True)
        )
        value, named = program(encoder.params, parts, tuple(jnp.asarray(p) for p in pivots))
        named = named | {"encoder_cut": jnp.asarray(cut.reshape(count, -1).any(axis=0), jnp.float32)}
        return Scores(value, jnp.asarray(inputs.pivots.has_B) & jnp.isfinite(value), named)

    return score
