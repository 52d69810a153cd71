"""Text encoders: spec, parameters and tokenizer; they map strings to unit vectors."""

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from pbrl_jax.core.batching import fill, length_bucket, pad_tokens, split_rows
from pbrl_jax.core.characters import as_texts
from pbrl_jax.core.errors import CheckpointError, ConfigError, nearest
from pbrl_jax.mesh.sharding import batch_sharding, replicated, row_mesh
from pbrl_jax.models.encoder import encode, init_encoder
from pbrl_jax.models.specs import DecoderEncoderSpec, EncoderSpec, TextEncoderSpec
from pbrl_jax.text.tokenizers import XLMR_FILE, HuggingFaceTokenizer, Tokenizer, XlmrTokenizer, load_tokenizer
from pbrl_jax.weights import hf_decoder
from pbrl_jax.weights.folders import check_vocabulary, own_folder, read_model, read_record, read_spec, save_model
from pbrl_jax.weights.hf_encoder import FAMILIES, dense_names, encoder_spec, transformer_names
from pbrl_jax.weights.hub import local_copy
from pbrl_jax.weights.sentence_transformers import MODULES, Chain, read_chain, read_json, read_max_length
from pbrl_jax.weights.tensors import CONFIG, load_params, open_weights, weights_digest

#: Texts that `Encoder.embed` tokenises and sorts at a time.
TEXTS_AT_A_TIME = 2048
#: Largest batch of texts.
EMBED_BATCH = 256
#: Largest number of tokens in a batch, padding included, so that batches of long texts are smaller.
EMBED_TOKENS = EMBED_BATCH * 512


class Encoder(NamedTuple):
    """`embed(texts)` gives float32 unit vectors [N, E]; texts of more than max_length tokens are read in chunks."""

    spec: TextEncoderSpec
    params: Any
    tokenizer: Tokenizer
    fingerprint: str
    #: Tokens of a chunk of text, without the special tokens that the spec adds.
    max_length: int
    prefix: str = ""
    #: Name -> prompt of a sentence-transformers folder, for exports.
    prompts: Mapping[str, str] = {}

    @property
    def key(self) -> str:
        """Identifies the vectors of this encoder: weights, pooling, length, prefix."""
        return f"{self.fingerprint}-{self.spec.pooling}-{self.max_length}-{self.prefix}"

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens [N, S], mask [N, S], whether a text was cut [N]), padded to a length bucket."""
        ids = self.tokenizer.encode_batch([self.prefix + text for text in texts])
        cut = np.array([len(row) > self.max_length for row in ids], bool)
        return *self._padded(ids), cut

    def _padded(self, ids: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        longest = max((min(len(row), self.max_length) for row in ids), default=1)
        size = length_bucket(max(longest, 1), self.max_length)
        tokens, lengths = pad_tokens(ids, size, self.tokenizer.pad_id)
        return tokens, np.arange(size)[None] < lengths[:, None]

    def chunks(self, ids: Sequence[int]) -> list[list[int]]:
        """A text's tokens in chunks of at most max_length tokens, each of which starts with the prefix."""
        ids = list(ids)
        if len(ids) <= self.max_length:
            return [ids]
        prefix = self.tokenizer.encode(self.prefix) if self.prefix else []
        room = self.max_length - len(prefix)
        if room < 1:
            raise ConfigError(
                f"encoder.max_length={self.max_length} holds no text beside the {len(prefix)} tokens of encoder.prefix "
                f"{self.prefix!r}. Use a larger max_length."
            )
        rest = ids[self.max_length :]
        return [ids[: self.max_length]] + [[*prefix, *rest[at : at + room]] for at in range(0, len(rest), room)]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of the texts, in their order.

        The vector of a text in several chunks is the normalised mean of the chunks' vectors, weighted by token counts.

        Raises:
          DataError: one text in place of a list, or something in it that is no text.
        """
        texts = as_texts(texts, "Texts to embed")
        vectors = np.zeros((len(texts), self.spec.embedding_width), np.float32)
        for start in range(0, len(texts), TEXTS_AT_A_TIME):
            batch = [self.prefix + text for text in texts[start : start + TEXTS_AT_A_TIME]]
            texts_chunks = [self.chunks(ids) for ids in self.tokenizer.encode_batch(batch)]
            embedded = self.embed_ids(*self._padded([chunk for chunks in texts_chunks for chunk in chunks]))
            first = 0
            for row, chunks in enumerate(texts_chunks, start):
                parts, first = embedded[first : first + len(chunks)], first + len(chunks)
                vectors[row] = parts[0] if len(chunks) == 1 else _pooled(parts, list(map(len, chunks)))
        return vectors

    def embed_ids(self, tokens_NS: np.ndarray, mask_NS: np.ndarray) -> np.ndarray:
        """Unit vectors of N right-padded texts. A batch has texts of about the same length (`length_bucket`) and one of
        a few sizes (`batch_sizes`), so that little padding is computed and few programs are compiled."""
        program, mesh, rows_at = embed_tokens(self.spec), mesh_of(self.params), row_sharding(self.params)
        S, devices = tokens_NS.shape[1], 1 if mesh is None else mesh.size
        longest_N = (mask_NS * np.arange(1, S + 1)).max(axis=1)
        bucket_N = np.array([length_bucket(longest, S) for longest in longest_N.tolist()], int)
        embedded = []
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            for tokens in np.unique(bucket_N).tolist():
                left = np.flatnonzero(bucket_N == tokens).tolist()
                for size in split_rows(len(left), batch_sizes(tokens, devices)):
                    rows, left = left[:size], left[size:]
                    chosen = np.ix_(fill(rows, size), range(tokens))
                    placed = jax.device_put((tokens_NS[chosen], mask_NS[chosen]), rows_at)
                    embedded.append((rows, program(self.params, *placed)))
        vectors_NE = np.zeros((len(tokens_NS), self.spec.embedding_width), np.float32)
        for rows, vectors in embedded:
            vectors_NE[rows] = np.asarray(vectors)[: len(rows)]
        return vectors_NE


def batch_sizes(tokens: int, devices: int) -> list[int]:
    """Batch sizes for texts of `tokens` tokens: powers of four up to `embed_block`, as multiples of `devices`."""
    largest = embed_block(tokens, devices)
    sizes = {-(-(4**power) // devices) * devices for power in range(EMBED_BATCH.bit_length() // 2 + 1)}
    return sorted(size for size in sizes | {largest} if size <= largest)


def embed_block(tokens: int, devices: int) -> int:
    """Largest batch size for texts of `tokens` tokens, a multiple of the number of devices."""
    return -(-max(1, min(EMBED_BATCH, EMBED_TOKENS // tokens)) // devices) * devices


def mesh_of(params: Any) -> Mesh | None:
    """The mesh over which an encoder's parameters are replicated; None if they are on one device."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) and mesh.size > 1 else None


def row_sharding(params: Any) -> NamedSharding | None:
    """Sharding of a batch of texts over `mesh_of`; None without a mesh."""
    mesh = mesh_of(params)
    return None if mesh is None else batch_sharding(mesh)


def over_devices(encoder: Encoder, mesh: Mesh) -> Encoder:
    """The encoder replicated on this process's devices of a mesh, over which its batches are then divided."""
    if len(mesh.local_devices) == 1:
        return encoder
    return encoder._replace(params=jax.device_put(encoder.params, replicated(row_mesh(mesh))))


def _pooled(vectors_CE: np.ndarray, tokens_C: Sequence[int]) -> np.ndarray:
    """The normalised mean of the vectors of C chunks, weighted by token count."""
    mean = np.average(vectors_CE, axis=0, weights=tokens_C)
    return mean / max(np.linalg.norm(mean), 1e-12)


@functools.cache
def embed_tokens(spec: TextEncoderSpec):
    """The compiled encoder of a spec: (params, tokens, mask) -> unit vectors."""
    return jax.jit(functools.partial(encode, spec=spec))


def load_encoder(
    directory: str,
    max_length: int | None = None,
    prefix: str = "",
    *,
    prompt: str = "",
    pooling: str | None = None,
    dtype: str | None = None,
) -> Encoder:
    """An encoder from a folder of `pbrl encoder`, of sentence-transformers, or of a plain Hugging Face model.

    Supported are BERT, XLM-R, XLM-R-XL, and decoders (Qwen3-Embedding, Harrier). Special tokens, pooling, Dense modules
    and lengths are read from the folder; vectors are always normalised.

    Args:
      directory: the folder, the work directory of `pbrl encoder`, a hub id, or a `gs://` path.
      max_length: tokens per chunk of a text, without special tokens; default: the folder's setting, at most the number
        of positions. The number of positions may be given too, and then includes special tokens, as in
        sentence-transformers.
      prefix: text before every input; default: the folder's default prompt, if it has one.
      prompt: name of one of the folder's prompts (config_sentence_transformers.json), instead of a prefix.
      pooling: mean, cls or last; required for a folder without modules.json, and refused for others.
      dtype: compute type, and parameter type of released models; default: the stored type, or float32.

    Raises:
      CheckpointError: no encoder, a damaged one, or an unsupported one.
      ConfigError: max_length exceeds the encoder's positions, or an argument does not apply to this kind of folder.
    """
    place = local_copy(directory)
    if own_folder(place, "encoder"):
        if prompt or pooling:
            raise ConfigError(f"{directory!r} was written by this package: leave prompt and pooling out.")
        spec, params, tokenizer, record = read_model(place, "encoder", stored_spec, init_encoder, source=directory)
        room, prefix = record.get("max_length", spec.text_tokens), prefix or record.get("prefix", "")
        if not (type(room) is int and 1 <= room <= spec.text_tokens):
            raise CheckpointError(f"{directory!r}: max_length is {room!r}; expected at most {spec.text_tokens} tokens.")
        encoder = Encoder(spec, params, tokenizer, record["weights_sha256"], room, prefix, record.get("prompts", {}))
        encoder = encoder if dtype is None else encoder._replace(spec=with_compute(spec, dtype))
    else:
        encoder = load_released(place, directory, prefix, prompt, pooling, dtype or "float32")
    limit = encoder.spec.text_tokens
    special = len(encoder.spec.begin_ids) + len(encoder.spec.end_ids)
    if max_length is not None and limit < max_length <= limit + special:
        print(f"{directory}: encoder.max_length {max_length} counts special tokens; it reads {limit} tokens of text.")
        max_length = limit
    if max_length is not None and max_length > limit:
        raise ConfigError(f"encoder.max_length={max_length} but this encoder has {limit} positions. Use {limit}.")
    return encoder if max_length is None else encoder._replace(max_length=max_length)


def folder_spec(directory: str, pooling: str | None = None, dtype: str | None = None) -> TextEncoderSpec:
    """The spec of an encoder's local folder, without weights and, for released ones, special tokens; as `load_encoder`
    reads it."""
    if not own_folder(directory, "encoder"):
        return _transformer_spec(_chain(directory, directory, pooling), dtype or "float32")
    spec = read_record(directory, "encoder", stored_spec)[1]
    return spec if dtype is None else with_compute(spec, dtype)


def with_compute(spec: TextEncoderSpec, dtype: str) -> TextEncoderSpec:
    """The spec with another compute type."""
    if isinstance(spec, DecoderEncoderSpec):
        return dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, dtype=dtype))
    return dataclasses.replace(spec, dtype=dtype)


def load_released(folder: str, source: str, prefix: str, prompt: str, pooling: str | None, dtype: str) -> Encoder:
    """`load_encoder` for folders of sentence-transformers or Hugging Face; `source` is the name that the user gave."""
    chain = _chain(folder, source, pooling)
    if prefix and prompt:
        raise ConfigError(f"Both prefix {prefix!r} and prompt {prompt!r} are given. Give one.")
    prefix = prefix or chain.prompt(prompt)
    if prefix and not chain.include_prompt:
        raise CheckpointError(f"{source} leaves prompts out of its pooling, which is not supported. Use no prefix.")
    spec = _transformer_spec(chain, dtype)
    names = transformer_names(spec)
    tokenizer = encoder_tokenizer(chain.transformer)
    begin_ids, end_ids = special_ids(tokenizer)
    spec = dataclasses.replace(spec, begin_ids=begin_ids, end_ids=end_ids)
    vocab_size, width = names["decoder/embed" if "decoder/embed" in names else "word_embed"].shape
    check_vocabulary(tokenizer, vocab_size, source)
    weights = open_weights(chain.transformer)
    params, digests = load_params(weights, names, dtype=dtype), [weights_digest(weights)]
    for index, (dense, path) in enumerate(zip(chain.dense, chain.dense_folders, strict=True)):
        weights = open_weights(path)
        params[f"dense_{index}"] = load_params(weights, dense_names(dense, width), dtype=dtype)
        digests.append(weights_digest(weights))
        width = dense.width
    fingerprint = hashlib.sha256(repr((digests, spec, tokenizer.fingerprint)).encode()).hexdigest()
    special = len(begin_ids) + len(end_ids)
    room = spec.text_tokens if chain.max_length is None else min(chain.max_length - special, spec.text_tokens)
    named = {name: text for name, text in chain.prompts.items() if name}
    return Encoder(spec, params, tokenizer, fingerprint, room, prefix, named)


def _transformer_spec(chain: Chain, dtype: str) -> TextEncoderSpec:
    """The spec of a folder's config.json, without special tokens."""
    config = read_json(os.path.join(chain.transformer, CONFIG))
    family, decoders = config.get("model_type"), (*hf_decoder.FAMILIES, *hf_decoder.MULTIMODAL, *hf_decoder.NOT_HERE)
    if family not in (*FAMILIES, *decoders):
        raise CheckpointError(
            f"{chain.transformer}/{CONFIG}: model_type is {family!r}, which no encoder here has. Supported are "
            f"{', '.join(FAMILIES)}, and decoders that embed.{nearest(str(family), (*FAMILIES, *decoders))}"
        )
    make_spec = encoder_spec if family in FAMILIES else _decoder_encoder
    return with_compute(make_spec(config, pooling=chain.pooling, dense=chain.dense), dtype)


def _decoder_encoder(config: Mapping[str, Any], **shared: Any) -> DecoderEncoderSpec:
    """The spec of a decoder used as encoder, without an output matrix."""
    bidirectional = config.get("use_bidirectional_attention") is True
    if bidirectional:
        config = {name: value for name, value in config.items() if name != "use_bidirectional_attention"}
    decoder = dataclasses.replace(hf_decoder.decoder_spec(config), tied_embeddings=True)
    if bidirectional:
        # The window in config.json counts both sides.
        decoder = dataclasses.replace(decoder, window=decoder.window and decoder.window // 2 + 1)
    positions = config.get("max_position_embeddings") or hf_decoder.DEFAULT_CONTEXT
    return DecoderEncoderSpec(decoder, int(positions), bidirectional, **shared)


def _chain(folder: str, source: str, pooling: str | None) -> Chain:
    """The module chain of a folder, or of a plain model with the given pooling."""
    if os.path.exists(os.path.join(folder, MODULES)):
        if pooling:
            raise ConfigError(f"{source!r} says itself how it pools, in {MODULES}. Leave pooling={pooling!r} out.")
        return read_chain(folder)
    if not os.path.exists(os.path.join(folder, CONFIG)):
        raise CheckpointError(
            f"No encoder in {source!r}: neither pbrl_encoder.json, encoder/pbrl_encoder.json, {MODULES} nor "
            "config.json is there. Give a folder written by `pbrl encoder`, or one of sentence-transformers."
        )
    if not pooling:
        raise CheckpointError(
            f"{source!r} has no {MODULES}, which says how to pool token states. Give the pooling of the model's "
            f"authors: --encoder.pooling mean (or cls, or last), `pbrl convert --pooling mean`, or "
            f"load_encoder({source!r}, pooling='mean')."
        )
    return Chain(folder, pooling, max_length=read_max_length(folder), prompts={"": ""})


def encoder_tokenizer(source: str) -> Tokenizer:
    """The tokenizer of an encoder's folder or hub id.

    XLM-R's uses SentencePiece if its model file exists: it gives the same ids, and text that spells a special token is
    not read as one. Not if tokens were added, which that file lacks.
    """
    model, config = os.path.join(source, XLMR_FILE), os.path.join(source, "tokenizer_config.json")
    kind = read_json(config).get("tokenizer_class") or "" if os.path.exists(config) else "XLMRobertaTokenizer"
    if os.path.exists(model) and kind.startswith("XLMRobertaTokenizer"):
        plain = XlmrTokenizer(model)
        if all(i < plain.vocab_size for i in _added_ids(source)):
            return plain
    tokenizer = load_tokenizer(source)
    if isinstance(tokenizer, HuggingFaceTokenizer):
        # Long texts are read in chunks or cut, so the tokenizer's warning about their length would be wrong.
        tokenizer.tokenizer.model_max_length = int(1e30)
    return tokenizer


def _added_ids(folder: str) -> list[int]:
    """Ids of the added tokens in a folder's tokenizer files, special ones included."""
    new, old = (os.path.join(folder, name) for name in ("tokenizer.json", "added_tokens.json"))
    listed = read_json(new).get("added_tokens", []) if os.path.exists(new) else []
    return [token["id"] for token in listed] + (list(read_json(old).values()) if os.path.exists(old) else [])


def special_ids(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(ids before, ids after) every text by the tokenizer's template; empty for a plain SentencePiece model."""
    if isinstance(tokenizer, XlmrTokenizer):
        return tokenizer.begin_ids, tokenizer.end_ids
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return (), ()
    plain, full = tokenizer.encode("a"), list(tokenizer.tokenizer("a")["input_ids"])
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return tuple(full[:start]), tuple(full[start + len(plain) :])
    raise CheckpointError(f"This tokenizer's special tokens change the text: 'a' is {plain}, with them {full}.")


def stored_spec(stored: Mapping[str, Any]) -> TextEncoderSpec:
    """The spec from the dict that `save_encoder` wrote."""
    return read_spec(DecoderEncoderSpec if "decoder" in stored else EncoderSpec, stored)


def save_encoder(encoder: Encoder, directory: str) -> None:
    """Write a folder for `load_encoder`, with the default prefix, the length and the named prompts."""
    more = {"prefix": encoder.prefix, "max_length": encoder.max_length, "prompts": dict(encoder.prompts)}
    save_model(directory, "encoder", encoder.spec, encoder.params, encoder.tokenizer, **more)
