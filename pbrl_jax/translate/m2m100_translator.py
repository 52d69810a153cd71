"""Translators with M2M100 and NLLB-200 models: translation, loading and export."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pbrl_jax.core.batching import by_length, few_rows, length_bucket, pad_tokens
from pbrl_jax.core.errors import CheckpointError, ConfigError
from pbrl_jax.core.stopping import check_stop
from pbrl_jax.mesh.sharding import tree_shardings
from pbrl_jax.models.m2m100 import AXES, M2M100Spec, target_logprobs, translate_tokens
from pbrl_jax.text.languages import LANGUAGES
from pbrl_jax.text.tokenizers import HuggingFaceTokenizer, load_tokenizer
from pbrl_jax.translate.translator import Segment, Translator, Written
from pbrl_jax.weights.encoder_export import SAMPLE
from pbrl_jax.weights.folders import check_vocabulary
from pbrl_jax.weights.hf_fields import read_config, stored_compute_type
from pbrl_jax.weights.hf_m2m100 import IGNORED, m2m100_names, m2m100_spec
from pbrl_jax.weights.hub import local_copy
from pbrl_jax.weights.tensors import CONFIG, abstract_params, load_params, open_weights, weights_digest
from pbrl_jax.weights.writing import differing_parameters, marking, refuse_differences, write_module

NLLB_CODES = {code: entry.nllb for code, entry in LANGUAGES.items()}
"""Language -> its token in NLLB-200. M2M100 has tokens such as `__sw__`."""
M2M100_CODES = {"fil": "tl", "nso": "ns"}
"""Languages that M2M100's tokens name otherwise than this package."""
SOURCE_LIMIT = 512
"""Maximum tokens of a source: the length of these models' training data; they have more positions."""
EMBEDDING_COPIES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
"""Names of the shared embedding in files that lack `model.shared.weight`."""


class M2M100Translator(Translator):
    """Translates sentence by sentence, greedily or by beam search; see `Translator.translate`.

    Args:
      num_beams: 1 is greedy. More: with the length_penalty and early_stopping of the model's generation_config.json (or
        config.json), as in transformers.
      batch_size: sentences per batch, all of one length bucket.
    """

    fingerprint: str = ""

    def __init__(
        self, spec: M2M100Spec, params: Any, tokenizer: HuggingFaceTokenizer, num_beams: int = 1, batch_size: int = 32
    ):
        if num_beams < 1 or batch_size < 1:
            raise ConfigError(f"num_beams={num_beams}, batch_size={batch_size}: both must be at least 1.")
        self.spec, self.params, self.tokenizer = spec, params, tokenizer
        self.config: dict[str, Any] = {}
        self.num_beams, self.batch_size = num_beams, batch_size
        self.source_limit = min(SOURCE_LIMIT, spec.max_positions)

    def fits(self, text: str) -> bool:
        return len(self.tokenizer.encode(text)) + 2 <= self.source_limit

    @functools.cached_property
    def language_ids(self) -> dict[str, int]:
        """Language -> the id of its token, for the languages of this model."""
        vocabulary = self.tokenizer.tokenizer.get_vocab()
        names = {code: (NLLB_CODES[code], f"__{M2M100_CODES.get(code, code)}__") for code in sorted(LANGUAGES)}
        ids = {code: [vocabulary[name] for name in pair if name in vocabulary] for code, pair in names.items()}
        return {code: matches[0] for code, matches in ids.items() if matches}

    def language_id(self, code: str) -> int:
        """The id of a language's token; ConfigError for a language that the model does not support."""
        if code not in self.language_ids:
            raise ConfigError(
                f"This model has no token for {LANGUAGES[code].name} ({code}); it knows "
                f"{', '.join(self.language_ids) or 'none of our languages'}. Use another translator."
            )
        return self.language_ids[code]

    def source_tokens(self, segments: Sequence[Segment]) -> list[list[int]]:
        """[language, tokens, end of sequence] of each source."""
        encoded = self.tokenizer.encode_batch([segment.text for segment in segments])
        end = self.spec.eos_ids[0]
        return [[self.language_id(s.source), *ids, end] for s, ids in zip(segments, encoded, strict=True)]

    def write(self, segments: Sequence[Segment]) -> list[Written]:
        tokens = self.source_tokens(segments)
        targets = [self.language_id(segment.target) for segment in segments]
        written: dict[int, Written] = {}
        for rows, filled in by_length(list(map(len, tokens)), few_rows(len(tokens), self.batch_size)):
            check_stop()
            batch = [tokens[row] for row in filled], [targets[row] for row in filled]
            written |= dict(zip(rows, self._write_batch(*batch), strict=False))
        return [written[row] for row in range(len(segments))]

    def _write_batch(self, tokens: list[list[int]], targets: list[int]) -> list[Written]:
        length = length_bucket(max(map(len, tokens)), self.source_limit)
        tokens_BS, lengths_B = pad_tokens(tokens, length, self.spec.pad_id)
        mask_BS = np.arange(length)[None] < lengths_B[:, None]
        run = compiled_translation(self.spec, self.target_limit(length), self.num_beams)
        output = run(self.params, tokens_BS=tokens_BS, mask_BS=mask_BS, forced_bos_B=np.array(targets, np.int32))
        rows = zip(*map(np.asarray, (output.tokens_BR, output.lengths_B, output.truncated_B)), strict=True)
        ends = set(self.spec.eos_ids)
        return [
            Written(self.tokenizer.decode([i for i in ids[1:length].tolist() if i not in ends]).strip(), not cut)
            for ids, length, cut in rows
        ]

    def likelihoods(self, segments: Sequence[Segment], targets: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(mean log-prob per token of each target as a translation of its segment, in nats [N]; whether source or
        target was cut at the model's limit [N])."""
        sources, end = self.source_tokens(segments), self.spec.eos_ids[0]
        encoded = self.tokenizer.encode_batch(list(targets))
        limit, target_limit = self.source_limit, self.source_limit - 3  # without start, language and end
        cut_N = np.array([len(s) > limit or len(t) > target_limit for s, t in zip(sources, encoded, strict=True)], bool)
        sources = [ids if len(ids) <= limit else [*ids[: limit - 1], end] for ids in sources]
        target_ids = [[self.language_id(segment.target), *ids[:target_limit], end]
                      for segment, ids in zip(segments, encoded, strict=True)]  # fmt: skip
        mean_N = np.zeros(len(sources), np.float32)
        lengths = [max(len(s), len(t)) for s, t in zip(sources, target_ids, strict=True)]
        for rows, filled in by_length(lengths, few_rows(len(sources), self.batch_size)):
            check_stop()
            length = length_bucket(max(lengths[row] for row in filled), limit)
            tokens_BS, lengths_B = pad_tokens([sources[row] for row in filled], length, self.spec.pad_id)
            targets_BR, targets_B = pad_tokens([target_ids[row] for row in filled], length, self.spec.pad_id)
            mask_BS = np.arange(length)[None] < lengths_B[:, None]
            mean_B = compiled_likelihood(self.spec)(self.params, tokens_BS, mask_BS, targets_BR, targets_B)
            mean_N[rows] = np.asarray(mean_B)[: len(rows)]
        return mean_N, cut_N

    def target_limit(self, source_length: int) -> int:
        """Maximum tokens of a translation; a longer one is usually a repetition without an end."""
        return min(2 * source_length + 32, self.spec.max_positions)


@functools.cache
def compiled_translation(spec: M2M100Spec, max_length: int, num_beams: int):
    """translate_tokens, compiled once per spec and limits."""
    return jax.jit(functools.partial(translate_tokens, spec=spec, max_length=max_length, num_beams=num_beams))


@functools.cache
def compiled_likelihood(spec: M2M100Spec):
    """target_logprobs, compiled once per spec."""
    return jax.jit(functools.partial(target_logprobs, spec))


def load_m2m100(
    folder: str, config: dict[str, Any], source: str, mesh=None, dtype: str | None = None, num_beams: int = 1,
    batch_size: int = 32,
) -> M2M100Translator:  # fmt: skip
    """A translator from a local M2M100 or NLLB folder.

    Args:
      folder: weights (safetensors or `pytorch_model.bin`) and tokenizer.
      config: its config.json.
      source: the user's name of the folder, for messages.
      mesh: the mesh for the parameters.
      dtype: compute and parameter type; default: the config's.

    Raises:
      CheckpointError: an unsupported model, weights that do not fit it, a tokenizer of another model.
    """
    spec = m2m100_spec(config, dtype or stored_compute_type(config))
    names, tensors = m2m100_names(spec), open_weights(folder)
    shared = names["embed"]
    if shared.template not in tensors:
        names["embed"] = shared._replace(template=next((n for n in EMBEDDING_COPIES if n in tensors), shared.template))
    tokenizer = load_tokenizer(folder)
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise CheckpointError(f"{source!r} has no tokenizer.json, which names the languages. Copy the whole folder.")
    check_vocabulary(tokenizer, spec.vocab_size, source)
    shardings = None if mesh is None else tree_shardings(abstract_params(names), AXES, mesh)
    params = load_params(tensors, names, shardings, jnp.dtype(spec.dtype), ignore=IGNORED)
    rules = beam_rules({**config, **tokenizer.generation_config}, source) if num_beams > 1 else {}
    translator = M2M100Translator(dataclasses.replace(spec, **rules), params, tokenizer, num_beams, batch_size)
    translator.config = config
    described = json.dumps([config, num_beams, *rules.items()], sort_keys=True) + weights_digest(tensors)
    translator.fingerprint = hashlib.sha256(described.encode()).hexdigest()
    return translator


def beam_rules(settings: dict[str, Any], source: str) -> dict[str, Any]:
    """The settings of beam search that are not the defaults of M2M100Spec.

    Raises:
      CheckpointError: values that this package does not compute with.
    """
    early, penalty = settings.get("early_stopping") or False, settings.get("length_penalty")
    penalty = 1.0 if penalty is None else penalty
    if type(early) is not bool or type(penalty) not in (int, float):
        raise CheckpointError(
            f"{source!r} asks for beam search with early_stopping {early!r} and length_penalty {penalty!r}; expected "
            "true or false and a number. Change generation_config.json, or use num_beams=1."
        )
    found = {"early_stopping": True} if early else {}
    return found if penalty == 1 else {**found, "length_penalty": float(penalty)}


def export_translator(translator: M2M100Translator, directory: str) -> None:
    """Write a folder for transformers: safetensors in the parameters' type, config.json, tokenizer.

    The folder is read back and compared: parameters must be bitwise equal, and token ids must agree.

    Args:
      translator: from `load_m2m100`.
      directory: the folder, local or `gs://...`; files of these names are replaced.

    Raises:
      CheckpointError: the files read back differ from the translator.
    """
    folder, kind = epath.Path(directory), np.dtype(jax.tree.leaves(translator.params)[0].dtype).name
    config: dict[str, Any] = {name: value for name, value in translator.config.items() if name != "dtype"}
    folder.mkdir(parents=True, exist_ok=True)
    with marking(folder, CONFIG):
        translator.tokenizer.save(str(folder))
        names = m2m100_names(translator.spec)
        write_module(folder, {**config, "torch_dtype": kind}, translator.params, names)
        local = local_copy(str(directory))
        reloaded = load_m2m100(local, read_config(local, str(directory)) or {}, str(directory))
        problems = differing_parameters(translator.params, reloaded.params)
        if reloaded.tokenizer.encode_batch(SAMPLE) != translator.tokenizer.encode_batch(SAMPLE):
            problems.append("the tokenizer gives other ids")
        if reloaded.language_ids != translator.language_ids:
            problems.append("the tokenizer has other languages")
        refuse_differences(directory, problems, CONFIG)
