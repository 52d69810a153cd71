"""A text encoder: spec, parameters and tokenizer together, from strings to unit vectors."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pbrl_jax.assets.folders import read_model, save_model
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.models.encoder import encode, init_encoder
from pbrl_jax.models.specs import EncoderSpec
from pbrl_jax.text.tokenizers import Tokenizer

#: Encoder inputs are padded to one of these lengths, so that few programs are compiled.
LENGTH_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
#: Texts embedded at a time by `Encoder.embed`.
EMBED_BATCH = 256


def length_bucket(longest: int, limit: int) -> int:
    """The smallest bucket that holds `longest` tokens, never above `limit`."""
    return next((size for size in LENGTH_BUCKETS if longest <= size < limit), limit)


class Encoder(NamedTuple):
    """`embed(texts)` gives float32 unit vectors [N, E]; longer texts are cut at max_length tokens."""

    spec: EncoderSpec
    params: Any
    tokenizer: Tokenizer
    fingerprint: str
    max_length: int
    prefix: str = ""

    @property
    def key(self) -> str:
        """Identifies the vectors this encoder gives: weights, pooling, prefix, length."""
        return f"{self.fingerprint}-{self.spec.pooling}-{self.max_length}-{self.prefix}"

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens [N, S], mask [N, S], was cut [N]) padded to a length bucket."""
        ids = self.tokenizer.encode_batch([self.prefix + text for text in texts])
        cut = np.array([len(row) > self.max_length for row in ids], bool)
        longest = max((min(len(row), self.max_length) for row in ids), default=1)
        size = length_bucket(max(longest, 1), self.max_length)
        tokens = np.full((len(ids), size), self.tokenizer.pad_id, np.int32)
        mask = np.zeros((len(ids), size), bool)
        for row, row_ids in enumerate(ids):
            kept = row_ids[:size]
            tokens[row, : len(kept)] = kept
            mask[row, : len(kept)] = True
        return tokens, mask, cut

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of the texts, in their order."""
        vectors = np.zeros((len(texts), self.spec.projection or self.spec.width), np.float32)
        for start in range(0, len(texts), EMBED_BATCH):
            tokens, mask, _ = self.tokenize(list(texts[start : start + EMBED_BATCH]))
            vectors[start : start + len(tokens)] = self.embed_ids(tokens, mask)
        return vectors

    def embed_ids(self, tokens_NS: np.ndarray, mask_NS: np.ndarray) -> np.ndarray:
        """Unit vectors of N >= 1 tokenised texts; they run in batches of one size, so one program serves all."""
        program, count = embed_tokens(self.spec), len(tokens_NS)
        rows = np.concatenate([np.arange(count), np.zeros(-count % EMBED_BATCH, int)])
        blocks = [rows[start : start + EMBED_BATCH] for start in range(0, len(rows), EMBED_BATCH)]
        found = [program(self.params, jnp.asarray(tokens_NS[block]), jnp.asarray(mask_NS[block])) for block in blocks]
        return np.concatenate([np.asarray(vectors) for vectors in found])[:count]


@functools.cache
def embed_tokens(spec: EncoderSpec):
    """The compiled encoder of a spec: (params, tokens, mask) -> unit vectors."""
    return jax.jit(functools.partial(encode, spec=spec))


def abstract_encoder(spec: EncoderSpec):
    """Shapes of an encoder's parameters."""
    return jax.eval_shape(lambda: init_encoder(jax.random.key(0), spec))


def load_encoder(directory: str, max_length: int | None = None, prefix: str = "") -> Encoder:
    """An encoder from a folder written by `pbrl encoder`.

    Args:
      directory: the folder, or the work directory of `pbrl encoder`.
      max_length: tokens read of each text; default and limit: the encoder's positions.
      prefix: put before every text.

    Raises:
      CheckpointError: no encoder there, or a damaged one.
      ConfigError: max_length exceeds the encoder's positions.
    """
    spec, params, tokenizer, fingerprint = read_model(
        directory, "encoder", lambda stored: EncoderSpec(**stored), abstract_encoder
    )
    limit = spec.max_positions - spec.position_offset
    max_length = limit if max_length is None else max_length
    if max_length > limit:
        raise ConfigError(f"encoder.max_length={max_length} but this encoder has {limit} positions. Use {limit}.")
    return Encoder(spec, jax.tree.map(jnp.asarray, params), tokenizer, fingerprint, max_length, prefix)


def save_encoder(encoder: Encoder, directory: str) -> None:
    """Write a folder that load_encoder reads."""
    save_model(directory, "encoder", encoder.spec, encoder.params, encoder.tokenizer)
