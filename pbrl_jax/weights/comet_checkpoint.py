"""Reader of unbabel-comet folders: from a Lightning checkpoint and its settings to our spec and parameters.

The checkpoint is a pickle; reading it imports and runs nothing that it names.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

from pbrl_jax.core.errors import CheckpointError, ConfigError, DataError, did_you_mean
from pbrl_jax.models.comet import CometSpec
from pbrl_jax.models.pooling import ACTIVATIONS
from pbrl_jax.models.specs import EncoderSpec
from pbrl_jax.text.tokenizers import TOKENIZER_FILES, Tokenizer
from pbrl_jax.weights.encoders import encoder_tokenizer, special_ids
from pbrl_jax.weights.folders import check_vocabulary
from pbrl_jax.weights.hf_encoder import encoder_names, encoder_spec
from pbrl_jax.weights.hf_names import Stored, linear_names
from pbrl_jax.weights.sentence_transformers import read_json
from pbrl_jax.weights.tensors import CONFIG, load_params, weights_digest
from pbrl_jax.weights.torch_file import read_torch

CHECKPOINT = os.path.join("checkpoints", "model.ckpt")
HPARAMS = "hparams.yaml"

#: class_identifier -> our kind.
KINDS = {
    "regression_metric": "regression",
    "referenceless_regression_metric": "referenceless",
    "unified_metric": "unified",
    "xcomet_metric": "xcomet",
}
#: encoder_model -> model_type of its config.
ENCODERS = {"XLM-RoBERTa": "xlm-roberta", "XLM-RoBERTa-XL": "xlm-roberta-xl"}
#: Width -> attention heads of the released encoders, which cannot be derived from tensor shapes.
HEADS = {768: 12, 1024: 16, 2560: 32, 4096: 32}
#: Defaults of unbabel-comet's classes for missing settings.
DEFAULTS = {
    "layer": "mix", "sent_layer": "mix", "pool": "avg", "layer_transformation": "softmax", "activations": "Tanh",
}  # fmt: skip
NORMED_BY_DEFAULT = ("regression", "referenceless", "unified")
POOLINGS = {"avg": "mean", "cls": "cls"}
SEGMENTS = ("mt", "src", "ref")
#: Tensors of a checkpoint that are used only in training.
TRAINING_TENSORS = r"^(layerwise_attention\.dropout_(mask|fill)|(word|sent)loss\.weight)$"
ERROR_LABELS = ["minor", "major", "critical"]


def read_comet_checkpoint(folder: str, source: str, dtype: str) -> tuple[CometSpec, Any, Tokenizer, str]:
    """(spec, parameters, tokenizer, fingerprint) of a local folder of unbabel-comet.

    Args:
      source: the name that the user gave, for messages.

    Raises:
      CheckpointError: no such folder, a damaged file, or an unsupported setting or tensor.
    """
    path = os.path.join(folder, CHECKPOINT)
    if not os.path.exists(path) or not os.path.exists(os.path.join(folder, HPARAMS)):
        raise CheckpointError(
            f"No COMET model in {source!r}: expected pbrl_comet.json, or {CHECKPOINT} with {HPARAMS}. Give the folder "
            "of a released model (Unbabel/wmt22-comet-da), or one written by `pbrl convert comet`."
        )
    checkpoint = read_torch(path)
    tensors = checkpoint.get("state_dict") if isinstance(checkpoint, Mapping) else None
    if not isinstance(tensors, Mapping):
        raise CheckpointError(f"{path} is no Lightning checkpoint: it holds no state_dict.")
    hparams = _hparams(os.path.join(folder, HPARAMS), checkpoint.get("hyper_parameters"))
    tokenizer = _tokenizer(folder, hparams)
    begin_ids, end_ids = special_ids(tokenizer)
    config_file = os.path.join(folder, CONFIG)
    config = read_json(config_file) if os.path.exists(config_file) else _encoder_config(tensors, hparams)
    encoder = dataclasses.replace(encoder_spec(config), begin_ids=begin_ids, end_ids=end_ids)
    check_vocabulary(tokenizer, encoder.vocab_size, source)
    spec = comet_spec(hparams, dataclasses.replace(encoder, dtype=dtype))
    unused = TRAINING_TENSORS if spec.tags else f"{TRAINING_TENSORS}|^hidden2tag\\."
    params = load_params(tensors, comet_names(spec), dtype=dtype, ignore=unused)
    fingerprint = hashlib.sha256(repr((weights_digest(tensors), spec, tokenizer.fingerprint)).encode()).hexdigest()
    return spec, params, tokenizer, fingerprint


def _hparams(path: str, trained: Any) -> dict[str, Any]:
    """Settings of the checkpoint, and those that unbabel-comet reads from hparams.yaml instead."""
    try:
        with open(path, encoding="utf-8") as file:
            listed = yaml.safe_load(file)
    except (OSError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Copy or download it again.") from error
    if not isinstance(listed, Mapping) or listed.get("class_identifier") not in KINDS:
        kind = listed.get("class_identifier") if isinstance(listed, Mapping) else listed
        raise CheckpointError(f"{path} has class_identifier {kind!r}. {did_you_mean(str(kind), KINDS)}")
    merged = {**listed, **(trained if isinstance(trained, Mapping) else {})}
    merged["class_identifier"] = listed["class_identifier"]
    if listed.get("layer_transformation") == "sparsemax_patch":
        merged["layer_transformation"] = "sparsemax_patch"
    return merged


def comet_spec(hparams: Mapping[str, Any], encoder: EncoderSpec) -> CometSpec:
    """The spec of a checkpoint's settings.

    Raises:
      CheckpointError: a setting with an unsupported value.
    """
    kind = KINDS[hparams["class_identifier"]]
    settings = {name: DEFAULTS[name] if hparams.get(name) is None else hparams[name] for name in DEFAULTS}
    joint = kind in ("unified", "xcomet")
    layer = settings["sent_layer"] if joint else settings["layer"]
    activation = settings["activations"].lower()
    final_activation = str(hparams.get("final_activation") or "Identity").lower()
    tags = word_layer = 0
    if kind == "xcomet":
        tags, word_layer = 1 + len(ERROR_LABELS), int(hparams.get("word_layer", 36))
    problems = [
        f"{name}={value!r} (supported: {', '.join(map(str, supported))})"
        for name, value, supported in (
            ("sent_layer" if joint else "layer", layer, ("mix",)),
            ("pool", settings["pool"], ("avg", "cls") if not joint else (settings["pool"],)),
            ("layer_transformation", settings["layer_transformation"], ("softmax", "sparsemax", "sparsemax_patch")),
            ("activations", activation, tuple(ACTIVATIONS)),
            ("final_activation", final_activation, tuple(ACTIVATIONS)),
            ("error_labels", hparams.get("error_labels", ERROR_LABELS), (ERROR_LABELS,)),
            ("word_layer", word_layer, range(encoder.layers + 1)),
        )
        if value not in supported
    ]
    if not isinstance(hparams.get("hidden_sizes"), list | tuple):
        problems.append("hidden_sizes is missing")
    if problems:
        raise CheckpointError(f"This COMET checkpoint ({hparams['class_identifier']}) has " + "; ".join(problems) + ".")
    return CometSpec(
        encoder=encoder,
        kind=kind,
        hidden=tuple(int(width) for width in hparams["hidden_sizes"]),
        # unbabel-comet ignored this setting in joint models; newer files mark this with `sparsemax_patch`.
        transform="sparsemax" if settings["layer_transformation"] == "sparsemax" and not joint else "softmax",
        layer_norm=bool(hparams.get("layer_norm", kind in NORMED_BY_DEFAULT)),
        pooling="cls" if joint else POOLINGS[settings["pool"]],
        activation=activation,
        final_activation=final_activation,
        segments=tuple(hparams.get("input_segments") or SEGMENTS) if kind == "unified" else SEGMENTS,
        tags=tags,
        word_layer=word_layer,
    )


def comet_names(spec: CometSpec) -> dict[str, Stored]:
    """Our parameter path -> tensor of an unbabel-comet checkpoint."""
    names = {f"encoder/{path}": stored for path, stored in encoder_names(spec.encoder).items()}
    states = spec.encoder.layers + 1
    names["layer_weights"] = Stored("layerwise_attention.scalar_parameters.{layer}", (1,), layers=states)
    names["gamma"] = Stored("layerwise_attention.gamma", (1,))
    width = spec.features
    for index, following in enumerate((*spec.hidden, 1)):
        # Each layer is three modules of a sequence: linear, activation, dropout.
        names |= linear_names(f"estimator/{index}", f"estimator.ff.{3 * index}", (width,), (following,))
        width = following
    tagger = linear_names("tagger", "hidden2tag", (spec.encoder.width,), (spec.tags,))
    return names | tagger if spec.tags else names


def _encoder_config(tensors: Mapping[str, np.ndarray], hparams: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json for a COMET folder without one, from the shapes of its tensors."""
    prefix, model = "encoder.model.", hparams.get("encoder_model")
    advice = f"Put the config.json of {hparams.get('pretrained_model')!r} into the folder."
    if model not in ENCODERS:
        raise CheckpointError(f"This COMET model has the encoder {model!r}. {did_you_mean(str(model), ENCODERS)}")
    try:
        vocab, width = tensors[f"{prefix}embeddings.word_embeddings.weight"].shape
        positions = len(tensors[f"{prefix}embeddings.position_embeddings.weight"])
        types = len(tensors[f"{prefix}embeddings.token_type_embeddings.weight"])
        ffn = len(tensors[f"{prefix}encoder.layer.0.intermediate.dense.weight"])
    except KeyError as error:
        raise CheckpointError(f"The encoder's sizes are unknown: {error} is missing. {advice}") from error
    if width not in HEADS:
        raise CheckpointError(f"No released encoder of {width} channels is known, so its heads are not. {advice}")
    layers = sum(name.startswith(f"{prefix}encoder.layer.") and name.endswith("query.weight") for name in tensors)
    return {
        "model_type": ENCODERS[model], "vocab_size": vocab, "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": HEADS[width], "intermediate_size": ffn, "max_position_embeddings": positions,
        "type_vocab_size": types, "layer_norm_eps": 1e-5,
    }  # fmt: skip


def _tokenizer(folder: str, hparams: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in the folder, else that of the pretrained encoder."""
    has_tokenizer = any(os.path.exists(os.path.join(folder, name)) for name in TOKENIZER_FILES)
    source = folder if has_tokenizer else str(hparams.get("pretrained_model") or "")
    try:
        return encoder_tokenizer(source)
    except (ConfigError, DataError) as error:
        raise CheckpointError(
            f"{folder} holds no tokenizer, and that of {source!r} cannot be loaded: {error} Copy the tokenizer's files "
            "into the folder."
        ) from error
