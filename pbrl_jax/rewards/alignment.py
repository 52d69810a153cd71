"""Chunk alignment: the sentences of a response are matched with the sentences of its reference, in both directions.

An encoder that reads 512 tokens does not see the end of a long proof; here each sentence has its own vector. Precision
(does the reference contain each sentence of the response?) punishes padding; recall (does the response contain each
sentence of the reference?) punishes omissions. The value is their F1. A repeated sentence counts once.
"""

import functools
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pbrl_jax.core.records import Prompt, Scores
from pbrl_jax.rewards.inputs import RewardInputs, reference_text, response_texts
from pbrl_jax.rewards.similarity import SimilarityConfig, load_baselines, scale_similarity
from pbrl_jax.text.segments import STOPS
from pbrl_jax.weights.encoders import Encoder

LONGEST_CHUNK = 300
"""Approximate characters per chunk; a longer sentence is cut at spaces."""
CHUNK_BUCKETS = (4, 8, 16, 32, 64, 128, 256)
"""Chunks per text are padded to one of these counts; chunks beyond the largest are joined into the last one."""
_SENTENCE_END = re.compile(rf"(?<=[.!?؟])\s+|(?<=[{STOPS}])\s*|\n+")
_WORD_CHARACTER = re.compile(r"\w")


def chunks_of(text: str) -> list[str]:
    """Sentences of `text`, long ones cut at spaces into even pieces; pieces without a word or number are dropped."""
    chunks = []
    for sentence in _SENTENCE_END.split(text):
        words = sentence.split()
        count = -(-len(sentence) // LONGEST_CHUNK)
        edges = [round(len(words) * part / max(count, 1)) for part in range(count + 1)]
        chunks += [" ".join(words[start:end]) for start, end in zip(edges, edges[1:], strict=False)]
    chunks = [chunk for chunk in chunks if _WORD_CHARACTER.search(chunk)]
    most = CHUNK_BUCKETS[-1]
    return chunks if len(chunks) <= most else [*chunks[: most - 1], " ".join(chunks[most - 1 :])]


def soft_f1(
    response_BCE: Float[Array, "B C E"],
    weight_BC: Float[Array, "B C"],
    credit_BC: Float[Array, "B C"],
    reference_BKE: Float[Array, "B K E"],
    weight_BK: Float[Array, "B K"],
    baseline_B: Float[Array, "B"] | None = None,
    *,
    config: SimilarityConfig,
) -> tuple[Float[Array, "B"], Float[Array, "B"], Float[Array, "B"]]:
    """(F1, precision, recall) in [0, 1] of soft bidirectional matching.

    precision = sum_c w_c credit_c max_k s_ck / sum_c w_c; recall = sum_k w_k max_c s_ck / sum_k w_k, where s is the
    cosine on the scale of `config.similarity`, clipped at 0. All three are 0 where either side has no chunk.

    Args:
      response_BCE, reference_BKE: unit vectors of the chunks.
      weight_BC, weight_BK: weight of each chunk (its length in characters); 0 for padding.
      credit_BC: 0 for a chunk that repeats an earlier one, else 1.
      baseline_B: see similarity.scale_similarity.
    """
    cosine_BCK = jnp.einsum("bce,bke->bck", response_BCE, reference_BKE)
    baseline = None if baseline_B is None else baseline_B[:, None, None]
    both_BCK = (weight_BC[:, :, None] > 0) & (weight_BK[:, None, :] > 0)
    match_BCK = jnp.where(both_BCK, jnp.maximum(scale_similarity(cosine_BCK, config, baseline), 0.0), 0.0)
    precision_B = _mean(match_BCK.max(axis=2) * credit_BC, weight_BC)
    recall_B = _mean(match_BCK.max(axis=1), weight_BK)
    total_B = precision_B + recall_B
    f1_B = jnp.where(total_B > 0, 2 * precision_B * recall_B / jnp.where(total_B > 0, total_B, 1.0), 0.0)
    return f1_B, precision_B, recall_B


def _mean(value_BN, weight_BN):
    return (value_BN * weight_BN).sum(axis=1) / jnp.maximum(weight_BN.sum(axis=1), 1e-9)


@functools.cache
def compiled_f1(config: SimilarityConfig):
    """soft_f1, compiled once per pair of chunk buckets."""
    return jax.jit(functools.partial(soft_f1, config=config))


def make_alignment(config: SimilarityConfig, encoder: Encoder, languages: Sequence[str] = ()):
    """The reward `alignment` of the reasoning, or of the part that `config.parts` names (whole, answer). Of several
    references only the first is used.

    Rows without a reference are invalid; an empty response is a valid 0.

    Raises:
      ConfigError: similarity is calibrated, and there is no calibration of this encoder and these languages.
    """
    baselines = load_baselines(config, languages, encoder.key)
    program = compiled_f1(config)

    def score(inputs: RewardInputs) -> Scores:
        part = "reasoning" if config.parts == "split" else config.parts
        responses = [chunks_of(text) for text in response_texts(inputs, part)[part]]
        references = [chunks_of(_reference_text(prompt, part)) for prompt in inputs.prompts]
        index = {chunk: row for row, chunk in enumerate(dict.fromkeys(c for r in responses + references for c in r))}
        vectors_NE = encoder.embed(list(index) or [""])
        baseline_B = None
        if baselines is not None:
            baseline_B = jnp.asarray([baselines[prompt.language] for prompt in inputs.prompts], jnp.float32)
        response_BCE, weight_BC, credit_BC = _padded(responses, index, vectors_NE)
        reference_BKE, weight_BK, _ = _padded(references, index, vectors_NE)
        f1, precision, recall = program(response_BCE, weight_BC, credit_BC, reference_BKE, weight_BK, baseline_B)
        has_B = np.array([bool(chunks) for chunks in references], bool)
        return Scores(f1, jnp.asarray(has_B) & jnp.isfinite(f1), {"precision": precision, "recall": recall})

    return score


def _reference_text(prompt: Prompt, part: str) -> str:
    return "" if prompt.reference is None else reference_text(prompt.reference, part) or prompt.reference.text


def _padded(texts: Sequence[Sequence[str]], index: dict[str, int], vectors_NE: np.ndarray):
    """(vectors [B, C, E], weights [B, C], credit [B, C]) of chunked texts, padded to a bucket of C chunks."""
    longest = max((len(chunks) for chunks in texts), default=1)
    size = next(bucket for bucket in CHUNK_BUCKETS if bucket >= longest)
    vectors = np.zeros((len(texts), size, vectors_NE.shape[1]), np.float32)
    weight, credit = np.zeros((len(texts), size), np.float32), np.zeros((len(texts), size), np.float32)
    for row, chunks in enumerate(texts):
        vectors[row, : len(chunks)] = vectors_NE[[index[chunk] for chunk in chunks]]
        weight[row, : len(chunks)] = [len(chunk) for chunk in chunks]
        credit[row, : len(chunks)] = [chunk not in chunks[:place] for place, chunk in enumerate(chunks)]
    return vectors, weight, credit
