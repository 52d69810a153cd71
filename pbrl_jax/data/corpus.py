"""Encodes corpora with a tf.data pipeline and TensorFlow Text's SentencePiece.

For many texts at once, such as the references before they are embedded; single prompts and responses go through
`pbrl_jax.text.tokenizers`, with the same ids. TensorFlow takes seconds to import and would claim the accelerator: it is
imported inside these functions only, with its GPUs hidden.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from pbrl_jax.core.errors import ConfigError, installed
from pbrl_jax.text.tokenizers import SentencePieceTokenizer, Tokenizer, XlmrTokenizer

BATCH = 4096
"""Texts in one batch of the pipeline."""
BULK = 4096
"""Least number of texts for which starting TensorFlow is faster; fewer are encoded on the host, to the same ids."""


class EncodedTexts(NamedTuple):
    """N texts, right-padded; `cut_N` marks those that were longer than the arrays."""

    tokens_NS: Int[np.ndarray, "N S"]
    lengths_N: Int[np.ndarray, "N"]
    cut_N: Bool[np.ndarray, "N"]


def encode_corpus(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    max_length: int,
    *,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
) -> EncodedTexts:
    """All of `texts` as one padded int32 array, in their order.

    Args:
      texts: NFC strings.
      tokenizer: a SentencePiece one encodes BULK texts or more through tf.data; all else runs on the host, as all does
        where tensorflow-text is not installed.
      max_length: S, special ids included; longer texts are truncated before the suffix.
      prefix, suffix: special ids around every text.
    """
    pieces = list(stream_corpus(texts, tokenizer, max_length, prefix=prefix, suffix=suffix))
    if not pieces:
        return EncodedTexts(np.zeros((0, max_length), np.int32), np.zeros(0, np.int32), np.zeros(0, bool))
    return EncodedTexts(*(np.concatenate(column) for column in zip(*pieces, strict=True)))


def stream_corpus(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    max_length: int,
    *,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
) -> Iterator[EncodedTexts]:
    """`encode_corpus` in batches of at most BATCH texts, for corpora whose ids do not fit in memory."""
    room = max_length - len(prefix) - len(suffix)
    if room < 1:
        raise ConfigError(f"max_length {max_length} leaves no room beside {len(prefix) + len(suffix)} special ids.")
    if isinstance(tokenizer, SentencePieceTokenizer) and len(texts) >= BULK and installed("tensorflow_text"):
        yield from _through_tensorflow(texts, tokenizer, max_length, room, prefix, suffix)
    else:
        yield from _on_the_host(texts, tokenizer, max_length, room, prefix, suffix)


def _through_tensorflow(texts, tokenizer, max_length: int, room: int, prefix, suffix) -> Iterator[EncodedTexts]:
    tf, tf_text = tensorflow_without_accelerator()
    with _quiet_stderr():
        model = tf_text.SentencepieceTokenizer(model=tokenizer.model_bytes, out_type=tf.int32)
        begin, end = (tf.constant(list(ids), tf.int32) for ids in (prefix, suffix))

    def encode(batch):
        ragged = model.tokenize(batch)
        if isinstance(tokenizer, XlmrTokenizer):
            moved = tf.where(ragged.flat_values == 0, tokenizer.unknown, ragged.flat_values + tokenizer.shift)
            ragged = ragged.with_flat_values(moved)
        whole = ragged.row_lengths()
        kept = ragged[:, :room]
        size = tf.shape(batch)[0]
        around = [tf.RaggedTensor.from_tensor(tf.tile(ids[None, :], [size, 1])) for ids in (begin, end)]
        joined = tf.concat([around[0], kept, around[1]], axis=1)
        padded = joined.to_tensor(default_value=tokenizer.pad_id, shape=[None, max_length])
        return padded, tf.cast(joined.row_lengths(), tf.int32), whole > room

    # The runtime starts with the first batch, and prints warnings about missing devices.
    with _quiet_stderr():
        pipeline = (
            tf.data.Dataset.from_tensor_slices(list(texts))
            .batch(BATCH)
            .map(encode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .prefetch(tf.data.AUTOTUNE)
        )
        batches = pipeline.as_numpy_iterator()
        first = next(batches)
    yield EncodedTexts(*first)
    for batch in batches:
        yield EncodedTexts(*batch)


def _on_the_host(texts, tokenizer, max_length: int, room: int, prefix, suffix) -> Iterator[EncodedTexts]:
    for start in range(0, len(texts), BATCH):
        encoded = tokenizer.encode_batch(list(texts[start : start + BATCH]))
        tokens_NS = np.full((len(encoded), max_length), tokenizer.pad_id, np.int32)
        lengths_N = np.zeros(len(encoded), np.int32)
        for row, ids in enumerate(encoded):
            joined = [*prefix, *ids[:room], *suffix]
            tokens_NS[row, : len(joined)] = joined
            lengths_N[row] = len(joined)
        yield EncodedTexts(tokens_NS, lengths_N, np.array([len(ids) > room for ids in encoded]))


def tensorflow_without_accelerator():
    """(tensorflow, tensorflow_text), with the GPUs hidden from them."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _quiet_stderr():
        import tensorflow as tf
        import tensorflow_text

    try:
        with _quiet_stderr():
            tf.config.set_visible_devices([], "GPU")
    except RuntimeError as error:
        # TensorFlow is already initialised in this process and may have claimed the accelerator.
        if tf.config.get_visible_devices("GPU"):
            raise ConfigError(
                "TensorFlow was initialised with a GPU before this package could hide it. Call "
                "tf.config.set_visible_devices([], 'GPU') first."
            ) from error
    return tf, tensorflow_text


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Discards what native libraries write to stderr; Python errors are raised as usual."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
