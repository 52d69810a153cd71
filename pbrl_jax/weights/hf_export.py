"""Export of policies: a Hugging Face folder for transformers and vLLM."""

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pbrl_jax.core.errors import CheckpointError, ConfigError
from pbrl_jax.core.trees import widest_type
from pbrl_jax.models.decoder import causal_logits
from pbrl_jax.text.hf_tokenizer import GENERATION_CONFIG
from pbrl_jax.text.sentencepiece_json import write_tokenizer_json
from pbrl_jax.text.tokenizers import MissingTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from pbrl_jax.weights.hf_decoder import constant_tensors, decoder_names, decoder_spec, hf_config, is_fused
from pbrl_jax.weights.hf_fields import read_config
from pbrl_jax.weights.hub import local_copy
from pbrl_jax.weights.policies import PARAM_TYPES, Policy
from pbrl_jax.weights.tensors import CONFIG, load_params, open_weights
from pbrl_jax.weights.writing import differing_parameters, marking, refuse_differences, write_json, write_tensors

_LOGGER = logging.getLogger(__name__)

CHECKED_TOKENS = 16
#: Relative to the largest logit. Both sides run the same program on the same values, in possibly other memory layouts.
TOLERANCE = 1e-5
SAMPLE_TEXT = "Jibu ni 12. 答案是 12。 คำตอบคือ 12 <think>\\boxed{12}</think>"


def export_policy(policy: Policy, directory: str, dtype: str | None = None) -> None:
    """Write a Hugging Face folder: safetensors, config.json, tokenizer, chat template, generation_config.json.

    Parameters are written one by one, above 5 GB into several files with an index; config.json is written last and
    marks a complete folder. The folder is then read back and must give the same parameters, the same token ids and, for
    a few tokens, the same logits.

    Args:
      policy: the policy; on one host.
      directory: the folder, local or `gs://...`; a model in it is replaced.
      dtype: type of the stored weights, float32 or bfloat16; default: that of the parameters, the widest of several.

    Raises:
      CheckpointError: no model family has this spec, the folder holds a model of this package, or it reads back
        differently.
      ConfigError: an unknown type.
    """
    if dtype is not None and dtype not in PARAM_TYPES[:2]:
        raise ConfigError(f"dtype is {dtype!r}; expected {' or '.join(PARAM_TYPES[:2])}.")
    kind = np.dtype(jnp.dtype(dtype or widest_type(policy.params)))
    config = _config(policy, kind.name)
    folder = epath.Path(directory)
    if (folder / "pbrl_policy.json").exists():
        raise CheckpointError(f"{directory} holds a policy of this package, which would be lost. Name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    with marking(folder, CONFIG):
        export_weights(policy, directory, kind.name)
        (folder / GENERATION_CONFIG).unlink(missing_ok=True)
        if not isinstance(policy.tokenizer, MissingTokenizer):
            _write_tokenizer(policy.tokenizer, folder, config["model_type"])
        write_json(folder / CONFIG, config)
        check_export(policy, str(directory), kind)


def _write_tokenizer(tokenizer: Tokenizer, folder: epath.Path, model_type: str) -> None:
    tokenizer.save(str(folder))
    if type(tokenizer) is SentencePieceTokenizer:
        if problem := write_tokenizer_json(tokenizer, folder, model_type=model_type):
            _LOGGER.warning("%s has tokenizer.model, but no tokenizer.json for transformers: %s.", folder, problem)
    if not (folder / GENERATION_CONFIG).exists():
        write_json(folder / GENERATION_CONFIG, _token_ids(tokenizer))


def export_weights(policy: Policy, directory: str, dtype: str) -> None:
    """Write the tensors alone, for a program that has the rest of the model; the folder exists.

    Raises:
      CheckpointError: no model family has this spec, or a parameter is not finite.
    """
    names = decoder_names(policy.spec, is_fused(_config(policy, dtype)["model_type"]))
    kind = np.dtype(jnp.dtype(dtype))
    write_tensors(epath.Path(directory), policy.params, names, kind, constant_tensors(policy.spec))


def _config(policy: Policy, dtype: str) -> dict[str, Any]:
    return hf_config(policy.spec, {**_token_ids(policy.tokenizer), **(policy.kept or {})}, dtype)


def _token_ids(tokenizer: Tokenizer | MissingTokenizer) -> dict[str, Any]:
    if isinstance(tokenizer, MissingTokenizer):
        return {}
    eos = list(tokenizer.eos_ids)
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos,
        "pad_token_id": tokenizer.pad_id,
    }


def check_export(policy: Policy, directory: str, kind: np.dtype) -> None:
    """Read an exported folder back and compare it with the policy.

    Raises:
      CheckpointError: names the parameter that differs, or says that token ids or logits do.
    """
    place = local_copy(directory)
    config = read_config(place, directory)
    operational = {name: getattr(policy.spec, name) for name in ("dtype", "remat", "attention")}
    spec = dataclasses.replace(decoder_spec(config or {}), **operational)
    written = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(kind), policy.params)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, written)
    names = decoder_names(spec, is_fused((config or {}).get("model_type", "")))
    read = load_params(open_weights(place), names, shardings, kind)
    problems = differing_parameters(written, read)
    if not isinstance(policy.tokenizer, MissingTokenizer):
        sides = [(t.encode(SAMPLE_TEXT), t.eos_ids) for t in (policy.tokenizer, load_tokenizer(place))]
        problems += ["the tokenizer gives other ids"] if sides[0] != sides[1] else []
    tokens_BT = jnp.linspace(0, spec.vocab_size - 1, CHECKED_TOKENS).astype(jnp.int32)[None]
    mask_BT = jnp.ones(tokens_BT.shape, bool)
    logits = jax.jit(causal_logits, static_argnums=1)
    expected_BTV = np.asarray(logits(written, policy.spec, tokens_BT, mask_BT))
    difference = float(np.abs(np.asarray(logits(read, spec, tokens_BT, mask_BT)) - expected_BTV).max())
    if not difference <= TOLERANCE * float(np.abs(expected_BTV).max()):
        problems.append(f"logits differ by {difference:.3g}")
    refuse_differences(directory, problems, CONFIG)
