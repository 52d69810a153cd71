"""COMET models: spec, parameters and tokenizer, from folders of unbabel-comet or of `convert_comet`."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pbrl_jax.core.batching import fill, length_bucket, pad_tokens
from pbrl_jax.core.characters import as_texts
from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.models.comet import UNIFIED_INPUTS, CometSpec, init_comet, score_apart, score_joint
from pbrl_jax.text.tokenizers import Tokenizer
from pbrl_jax.weights.comet_checkpoint import read_comet_checkpoint
from pbrl_jax.weights.folders import own_folder, read_model, read_spec, save_model
from pbrl_jax.weights.hub import local_copy
from pbrl_jax.weights.writing import differing_parameters, marking, refuse_differences

#: Largest number of tokens in a batch, padding included. The states of all layers are in memory at once.
SCORE_TOKENS = 4096


class Comet(NamedTuple):
    """A COMET model; `score(src, mt, ref)` gives one float32 score per translation, about 1 for a perfect one."""

    spec: CometSpec
    params: Any
    tokenizer: Tokenizer
    fingerprint: str

    @property
    def needs_reference(self) -> bool:
        """Whether `score` needs references."""
        return self.spec.kind == "regression" or "src" not in self.spec.segments

    @property
    def takes_reference(self) -> bool:
        """Whether `score` reads references that are given."""
        return self.spec.kind != "referenceless" and "ref" in self.spec.segments

    def score(self, src: Sequence[str], mt: Sequence[str], ref: Sequence[str] | None = None) -> np.ndarray:
        """Scores of translations `mt` of sources `src`, [N].

        As in unbabel-comet, a model that was trained without references ignores `ref`, and unified and XCOMET models
        use it if given. Texts are cut at the encoder's length (510 tokens for XLM-R, special tokens included; see
        `cut`), so score one or a few sentences at a time.

        Raises:
          ConfigError: the model needs references, and `ref` is None.
          DataError: lists of different lengths, one text in place of a list, or something in it that is no text.
        """
        if ref is None and self.needs_reference:
            raise ConfigError(f"This COMET model ({self.spec.kind}) compares with references. Give ref.")
        lists = {"src": src, "mt": mt} | ({} if ref is None else {"ref": ref})
        given = {name: as_texts(texts, f"COMET's {name}") for name, texts in lists.items()}
        lengths = {name: len(texts) for name, texts in given.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"Scoring needs one source (and reference) per translation, found {lengths}.")
        segments = {name: self._segments(texts) for name, texts in given.items()}
        sequences = self._sequences(segments)
        longest = np.array([max(len(ids) for ids in row) for row in zip(*sequences, strict=True)], int)
        scores = np.zeros(len(given["mt"]), np.float32)
        order = np.argsort(longest, kind="stable").tolist()
        start = 0
        while start < len(order):
            size = length_bucket(int(longest[order[start]]), self.spec.encoder.max_positions)
            count = max(1, SCORE_TOKENS // (size * len(sequences)))
            rows = [row for row in order[start : start + count] if longest[row] <= size]
            scores[rows] = self._run(sequences, segments["mt"], fill(rows, count), size)[: len(rows)]
            start += len(rows)
        return scores

    def cut(self, texts: Sequence[str]) -> np.ndarray:
        """Whether `score` would cut each text, [N]."""
        return np.array([len(ids) > self._room for ids in self.tokenizer.encode_batch(list(texts))], bool)

    @property
    def _room(self) -> int:
        """Largest number of tokens of a text, without special tokens, as in unbabel-comet."""
        encoder = self.spec.encoder
        return encoder.max_positions - 4 - len(encoder.begin_ids) - len(encoder.end_ids)

    def _segments(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text with special tokens, cut as in unbabel-comet."""
        begin, end = self.spec.encoder.begin_ids, self.spec.encoder.end_ids
        return [[*begin, *ids[: self._room], *end] for ids in self.tokenizer.encode_batch(texts)]

    def _sequences(self, segments: Mapping[str, list[list[int]]]) -> list[list[list[int]]]:
        """The C encoder inputs of every translation: separate or joined segments."""
        if self.spec.kind in ("regression", "referenceless"):
            names = ("src", "mt", "ref") if self.spec.kind == "regression" else ("src", "mt")
            return [segments[name] for name in names]
        used = [name for name in ("mt", "src", "ref") if name in segments and name in self.spec.segments]
        inputs = UNIFIED_INPUTS if len(used) == 3 else (tuple(used),)
        return [
            [self._joined(row) for row in zip(*(segments[name] for name in names), strict=True)] for names in inputs
        ]

    def _joined(self, parts: Sequence[list[int]]) -> list[int]:
        """`<s> mt </s></s> src </s></s> ref </s>`, cut on the right, where no </s> is added."""
        begin, end = self.spec.encoder.begin_ids, self.spec.encoder.end_ids
        joined = list(parts[0])
        for part in parts[1:]:
            joined += [*end, *part[len(begin) :]]
        return joined[: self.spec.encoder.max_positions - self.spec.encoder.position_offset]

    def _run(self, sequences, mt, rows: Sequence[int], size: int) -> np.ndarray:
        padded = [pad_tokens([sequence[row] for row in rows], size, self.tokenizer.pad_id) for sequence in sequences]
        tokens, lengths = map(np.stack, zip(*padded, strict=True))
        inputs = [jnp.asarray(tokens), jnp.asarray(np.arange(size) < lengths[..., None])]
        if self.spec.kind in ("unified", "xcomet"):
            inputs.append(jnp.asarray([len(mt[row]) for row in rows], jnp.int32))
        return np.asarray(scorer(self.spec)(self.params, *inputs), np.float32)


@functools.cache
def scorer(spec: CometSpec):
    """The compiled scoring function of a spec."""
    apart = spec.kind in ("regression", "referenceless")
    return jax.jit(functools.partial(score_apart if apart else score_joint, spec=spec))


def load_comet(directory: str, dtype: str | None = None, transform: str | None = None) -> Comet:
    """A COMET model from a folder of unbabel-comet (checkpoints/model.ckpt and hparams.yaml) or of `convert_comet`.

    Args:
      directory: the folder, a hub id (Unbabel/wmt22-comet-da), or a `gs://` path.
      dtype: type of the encoder's computation and of the parameters; default: the stored type, or float32.
      transform: sparsemax or softmax, to override the checkpoint's. Released unified and XCOMET models use softmax
        whatever their settings say; give sparsemax for a model trained with a corrected unbabel-comet.

    Raises:
      CheckpointError: no COMET model, an unsupported one, or a damaged one.
    """
    place = local_copy(directory)
    if own_folder(place, "comet"):
        spec_of = functools.partial(read_spec, CometSpec)
        spec, params, tokenizer, record = read_model(place, "comet", spec_of, init_comet, source=directory)
        fingerprint = record["weights_sha256"]
        if dtype is not None:
            spec = dataclasses.replace(spec, encoder=dataclasses.replace(spec.encoder, dtype=dtype))
    else:
        spec, params, tokenizer, fingerprint = read_comet_checkpoint(place, directory, dtype or "float32")
    if transform is not None:
        spec = dataclasses.replace(spec, transform=transform)
    return Comet(spec, params, tokenizer, fingerprint)


def convert_comet(directory: str, out: str, dtype: str | None = None) -> Comet:
    """Convert a COMET model to this package's format: safetensors, a spec and the tokenizer. Returns the new model.

    Args:
      directory: as in load_comet.
      out: the folder, local or `gs://...`; it is read back and compared.
      dtype: type of the written parameters, float32 or bfloat16; default: the stored type, or float32.

    Raises:
      CheckpointError: as load_comet, or the new folder reads back differently.
    """
    comet = load_comet(directory, dtype)
    if dtype is not None:
        comet = comet._replace(params=jax.tree.map(lambda leaf: leaf.astype(dtype), comet.params))
    with marking(epath.Path(out), "pbrl_comet.json"):
        save_model(out, "comet", comet.spec, comet.params, comet.tokenizer)
        written = load_comet(out)
        refuse_differences(out, differing_parameters(comet.params, written.params), "pbrl_comet.json")
    return written
