"""The module chain of a sentence-transformers folder, in the old and the new format.

`modules.json` lists the modules, each with its own folder. A module is identified by the last part of its `type`, since
the rest differs between versions. An unknown module or setting is an error.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pbrl_jax.core.errors import CheckpointError, did_you_mean
from pbrl_jax.core.paths import parse_json
from pbrl_jax.models.pooling import ACTIVATIONS
from pbrl_jax.models.specs import DenseSpec
from pbrl_jax.weights.hf_fields import ConfigFields

MODULES = "modules.json"

#: Our pooling -> (its name in the new format, its flag in the old format).
POOLINGS = {
    "cls": ("cls", "pooling_mode_cls_token"),
    "mean": ("mean", "pooling_mode_mean_tokens"),
    "last": ("lasttoken", "pooling_mode_lasttoken"),
}
#: Config files of the Transformer module, in the order of sentence-transformers.
TRANSFORMER_CONFIGS = ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_xlm-roberta_config.json")
#: Least `model_max_length` of tokenizers without a length limit.
NO_LIMIT = 1_000_000_000


class Chain(NamedTuple):
    """The settings of a folder, without those of its transformer."""

    #: Folder of config.json, weights and tokenizer.
    transformer: str
    pooling: str = "mean"
    dense: tuple[DenseSpec, ...] = ()
    dense_folders: tuple[str, ...] = ()
    #: Largest number of tokens of a text, special tokens included; None: the number of positions.
    max_length: int | None = None
    #: Name -> text before an input; "" is the name of the default prompt.
    prompts: Mapping[str, str] = {}
    #: Whether a prompt's tokens are pooled.
    include_prompt: bool = True

    def prompt(self, name: str) -> str:
        """The prompt called `name`, or CheckpointError."""
        if name not in self.prompts:
            raise CheckpointError(f"{self.transformer} has no prompt {name!r}. {did_you_mean(name, self.prompts)}")
        return self.prompts[name]


def read_json(path: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      CheckpointError: no such file, or no JSON object in it.
    """
    try:
        with open(path, encoding="utf-8") as file:
            value = parse_json(file.read())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing. Copy or download the whole folder.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Copy or download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected an object.")
    return value


def read_chain(folder: str) -> Chain:
    """The chain of a folder with `modules.json`.

    Raises:
      CheckpointError: an unknown module, pooling, activation or setting, or a missing file.
    """
    modules = _modules(os.path.join(folder, MODULES))
    kinds = [kind for kind, _ in modules]
    order = " ".join(kind for kind in kinds if kind != "Dropout")
    if not re.fullmatch("Transformer Pooling( Dense)*( Normalize)?", order):
        raise CheckpointError(
            f"{folder}/{MODULES} lists {', '.join(kinds) or 'nothing'}; expected Transformer, Pooling, any number of "
            "Dense, and Normalize at the end or not at all."
        )
    paths = {kind: os.path.join(folder, path) for kind, path in modules}
    pooling, include_prompt = _pooling(os.path.join(paths["Pooling"], "config.json"))
    dense_folders = tuple(os.path.join(folder, path) for kind, path in modules if kind == "Dense")
    prompts, default = _prompts(folder)
    return Chain(
        transformer=os.path.normpath(paths["Transformer"]),
        pooling=pooling,
        dense=tuple(_dense(os.path.join(path, "config.json")) for path in dense_folders),
        dense_folders=dense_folders,
        max_length=read_max_length(paths["Transformer"]),
        prompts={**prompts, "": prompts[default] if default else ""},
        include_prompt=include_prompt,
    )


def _modules(path: str) -> list[tuple[str, str]]:
    """(last part of the type, folder) of each module, in order."""
    try:
        with open(path, encoding="utf-8") as file:
            listed = sorted(parse_json(file.read()), key=lambda module: module["idx"])
        modules = [(module["type"].rpartition(".")[2], module["path"]) for module in listed]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not the list of modules of sentence-transformers ({type(error).__name__}: {error}). "
            "Copy or download it again."
        ) from error
    known = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")
    for kind, _ in modules:
        if kind not in known:
            raise CheckpointError(f"{path} lists a module {kind!r} that is not known. {did_you_mean(kind, known)}")
    return modules


def _pooling(path: str) -> tuple[str, bool]:
    """(our pooling, whether prompts are pooled) from the old or the new format."""
    config = read_json(path)
    fields = ConfigFields(config, {}, path)
    for width in ("embedding_dimension", "word_embedding_dimension"):
        fields.take(width, None)
    flags = {name: fields.flag(name) for name in config if name.startswith("pooling_mode_")}
    chosen = fields.take("pooling_mode", [name for name, on in flags.items() if on])
    chosen = chosen if isinstance(chosen, list) else [chosen]
    include_prompt = fields.flag("include_prompt", True)
    fields.finish()
    for ours, names in POOLINGS.items():
        if len(chosen) == 1 and chosen[0] in names:
            return ours, include_prompt
    known, given = ", ".join(name for name, _ in POOLINGS.values()), " + ".join(map(str, chosen)) or "none"
    raise CheckpointError(f"{path} asks for pooling {given}; supported is one of {known}.")


def _dense(path: str) -> DenseSpec:
    """The spec of a Dense module."""
    fields = ConfigFields(read_json(path), {}, path)
    fields.size("in_features")
    width, bias = fields.size("out_features"), fields.flag("bias", True)
    # Old folders lack the field; Tanh is the default of sentence-transformers.
    activation = str(fields.take("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2].lower()
    if activation not in ACTIVATIONS:
        raise CheckpointError(f"{path}: activation_function {activation!r}. {did_you_mean(activation, ACTIVATIONS)}")
    fields.expect("use_residual", False)
    fields.expect("module_input_name", "sentence_embedding")
    fields.expect("module_output_name", "sentence_embedding", None)
    fields.finish()
    return DenseSpec(width, activation, bias)


def _prompts(folder: str) -> tuple[dict[str, str], str]:
    """(name -> prompt, name of the default prompt or "")."""
    path = os.path.join(folder, "config_sentence_transformers.json")
    config = read_json(path) if os.path.exists(path) else {}
    ConfigFields(config, {}, path).expect("truncate_dim", None)
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name") or ""
    if default and default not in prompts:
        raise CheckpointError(f"{path}: default_prompt_name {default!r} is not among the prompts {sorted(prompts)}.")
    return dict(prompts), default


def read_max_length(transformer: str) -> int | None:
    """Largest number of tokens of a text, from the Transformer module's config file or its tokenizer; None if neither
    has it.

    Raises:
      CheckpointError: an unknown setting that may change the vectors.
    """
    path = next((file for name in TRANSFORMER_CONFIGS if os.path.exists(file := os.path.join(transformer, name))), None)
    config = read_json(path) if path else {}
    fields = ConfigFields(config, {}, path or transformer)
    fields.expect("do_lower_case", False, None)
    fields.expect("transformer_task", "feature-extraction")
    fields.expect("module_output_name", "token_embeddings", None)
    fields.expect("method", "forward")
    for name in ("modality_config", "processing_kwargs"):
        fields.take(name, None)
    for name in ("model_args", "tokenizer_args", "config_args", "tokenizer_name_or_path"):
        fields.expect(name, None, {})
    limit = _tokens(fields, "max_seq_length")
    fields.finish()
    tokenizer = os.path.join(transformer, "tokenizer_config.json")
    if limit is None and os.path.exists(tokenizer):
        limit = _tokens(ConfigFields(read_json(tokenizer), {}, tokenizer), "model_max_length")
    return None if limit is None or limit >= NO_LIMIT else int(limit)


def _tokens(fields: ConfigFields, name: str) -> float | None:
    return fields.checked(
        name, None, lambda x: x is None or (type(x) in (int, float) and x >= 1), "a number of tokens, or null"
    )
