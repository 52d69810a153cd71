"""Unit vectors of the references, encoded in bulk once and cached in the pivot store."""

from collections.abc import Callable, Sequence

import numpy as np

from pbrl_jax.core.batching import length_bucket
from pbrl_jax.core.records import Prompt
from pbrl_jax.core.stopping import check_stop
from pbrl_jax.data.corpus import EncodedTexts, encode_corpus
from pbrl_jax.pivots.store import PivotStore
from pbrl_jax.rewards.inputs import PivotVectors
from pbrl_jax.weights.encoders import Encoder


def bulk_embedder(encoder: Encoder, texts: Sequence[str]) -> Callable[[Sequence[str]], np.ndarray]:
    """`embed(some of the texts) -> unit vectors [n, E]`, with all texts tokenised at once (tensorflow-text where
    there are many). The texts are tokenised when the first of them is asked for: a full cache asks for none.
    What the encoder does not read at a time is embedded in chunks."""
    index = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    encoded: list[EncodedTexts] = []

    def embed(batch: Sequence[str]) -> np.ndarray:
        check_stop()
        if not encoded:
            corpus = [encoder.prefix + text for text in index]
            encoded.append(encode_corpus(corpus, encoder.tokenizer, encoder.max_length))
        rows = np.array([index[text] for text in batch])
        lengths = encoded[0].lengths_N[rows]
        size = length_bucket(int(lengths.max()), encoder.max_length)
        found = encoder.embed_ids(encoded[0].tokens_NS[rows, :size], np.arange(size)[None] < lengths[:, None])
        long = np.flatnonzero(encoded[0].cut_N[rows])
        if len(long):
            found[long] = encoder.embed([batch[row] for row in long.tolist()])
        return found

    return embed


def reference_vectors(prompts: Sequence[Prompt], encoder: Encoder, store: PivotStore) -> PivotVectors:
    """Unit vectors of every prompt's references and of their parts, through the store's cache.

    [N, E] where each prompt has at most one reference, else [N, K, E] with K the most that one has.
    """
    many = max((1, *(len(prompt.references) for prompt in prompts)))
    slots = [(*prompt.references, *(None,) * many)[:many] for prompt in prompts]
    references = [reference for row in slots for reference in row]
    whole, reasoning, answer = (
        [getattr(reference, part) if reference else "" for reference in references]
        for part in ("text", "reasoning", "answer")
    )
    embed = bulk_embedder(encoder, [text for text in (*whole, *reasoning, *answer) if text.strip()])
    has = np.array([bool(text.strip()) for text in whole], bool)
    shape = (len(prompts), many) if many > 1 else (len(prompts),)

    def vectors(texts: list[str]) -> np.ndarray:
        return store.vectors(encoder.key, texts, embed).reshape(*shape, -1)

    return PivotVectors(vectors(whole), vectors(reasoning), vectors(answer), has.reshape(shape))
