"""`pbrl convert IN OUT`: policies and encoders into another form or type, translators into another type, COMET into
safetensors."""

import os
import re
from typing import Any

import jax

from pbrl_jax.checkpoint import list_checkpoints, restore_checkpoint, saved_leaves
from pbrl_jax.config.serialize import from_json
from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import CheckpointError, ConfigError
from pbrl_jax.core.paths import WorkDir, as_path, is_model_config, is_remote, read_json_object, work_dir
from pbrl_jax.core.trees import count_parameters, nested, widest_type
from pbrl_jax.run.settings import config_class
from pbrl_jax.translate.m2m100_translator import export_translator, load_m2m100
from pbrl_jax.weights.adapters import base_of, is_adapter, write_adapter
from pbrl_jax.weights.comet_checkpoint import CHECKPOINT, HPARAMS
from pbrl_jax.weights.comets import convert_comet
from pbrl_jax.weights.encoder_export import export_encoder
from pbrl_jax.weights.encoders import load_encoder, save_encoder
from pbrl_jax.weights.folders import own_folder
from pbrl_jax.weights.hf_decoder import is_fused
from pbrl_jax.weights.hf_encoder import FAMILIES
from pbrl_jax.weights.hf_export import export_policy
from pbrl_jax.weights.hf_fields import read_config, stored_compute_type
from pbrl_jax.weights.hf_m2m100 import MODEL_TYPE
from pbrl_jax.weights.hub import local_copy
from pbrl_jax.weights.policies import PARAM_TYPES, load_policy, save_policy
from pbrl_jax.weights.sentence_transformers import MODULES, read_chain, read_json
from pbrl_jax.weights.tensors import open_weights

#: Form of a folder -> what it is for.
FORMS = {
    "hf": "config.json, safetensors and tokenizer: transformers, vLLM, sentence-transformers and the hub",
    "pbrl": "the form that `pbrl train`, `pbrl sft` and `pbrl encoder` write",
    "adapter": "the adapters of a run with lora.rank, for PEFT and vLLM, beside the base named in its policy.source",
}

#: Adapters among the arrays of a checkpoint, of `pbrl train` and of the supervised stages.
ADAPTER_LEAF = re.compile(r"(state/)?params/layers/.+/lora_[ab]")


def is_encoder(place: str, source: str) -> bool:
    """Whether a local folder holds an encoder and no policy."""
    if own_folder(place, "policy"):
        return False
    if own_folder(place, "encoder") or os.path.exists(os.path.join(place, MODULES)):
        return True
    return (read_config(place, source) or {}).get("model_type") in FAMILIES


def convert_encoder(
    source: str, target: str, place: str, dtype: str | None, form: str, pooling: str | None = None
) -> None:
    """Read an encoder and write it; arguments as `main`."""
    stored = dtype
    if dtype is None and not own_folder(place, "encoder") and os.path.exists(os.path.join(place, MODULES)):
        stored = stored_compute_type(read_json(os.path.join(read_chain(place).transformer, "config.json")))
    encoder = load_encoder(source, dtype=stored, pooling=pooling)
    if dtype is not None:
        encoder = encoder._replace(params=jax.tree.map(lambda leaf: leaf.astype(dtype), encoder.params))
    if form == "hf":
        export_encoder(encoder, target)
    else:
        save_encoder(encoder, target)
        load_encoder(target)
    kind = str(jax.tree.leaves(encoder.params)[0].dtype)
    written = "an encoder of this package" if own_folder(target, "encoder") else "a sentence-transformers encoder"
    print(f"{target}: {written}, {count_parameters(encoder.params):,} parameters in {kind}, read back and compared.")


def is_comet(place: str) -> bool:
    """Whether a local folder holds a COMET model, as unbabel-comet or this package writes it."""
    theirs = all(os.path.exists(os.path.join(place, name)) for name in (CHECKPOINT, HPARAMS))
    return theirs or own_folder(place, "comet") is not None


def convert_translator(source: str, target: str, place: str, dtype: str | None, form: str) -> None:
    """Read an M2M100 or NLLB model and write it; arguments as `main`."""
    if form != "hf":
        raise ConfigError("--to pbrl: translators have no form of our own. Leave --to out.")
    translator = load_m2m100(place, read_config(place, source) or {}, source, dtype=dtype)
    export_translator(translator, target)
    kind, parameters = jax.tree.leaves(translator.params)[0].dtype, count_parameters(translator.params)
    print(f"{target}: a {MODEL_TYPE} translator, {parameters:,} parameters in {kind}, read back and compared.")


def saved_adapters(work: WorkDir) -> tuple[Any, int]:
    """(adapters in the newest checkpoint of a run, its step).

    Raises:
      CheckpointError: no checkpoint, or a damaged one.
    """
    found = list_checkpoints(work.checkpoints)
    if not found:
        raise CheckpointError(f"No checkpoint in {work.checkpoints}. IN is the work directory of a run with lora.rank.")
    step, folder = found[0]
    leaves = {path: leaf for path, leaf in saved_leaves(folder).items() if ADAPTER_LEAF.fullmatch(path)}
    shapes = {path: jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"]) for path, leaf in leaves.items()}
    tree = restore_checkpoint(folder, nested(shapes), partial=True).tree
    return tree.get("state", tree)["params"], step


def convert_adapter(source: str, target: str) -> None:
    """Write the adapters of a run as PEFT's; arguments as `main`.

    Raises:
      ConfigError: a run without adapters, or whose base has no name.
      CheckpointError: the base is no model of transformers, or has no such modules.
    """
    work = work_dir(source)
    if not work.config.exists():
        raise ConfigError(f"--to adapter: {source!r} has no config.json of a run. Name a work directory for IN.")
    config: Config = from_json(work.config.read_text(), config_class())
    base, place = config.policy.source, local_copy(config.policy.source)
    if not config.lora.rank or base == "random":
        found = "trained no adapters (lora.rank 0)" if not config.lora.rank else "began with random weights"
        raise ConfigError(
            f"--to adapter: the run in {source!r} {found}. `pbrl convert {source} {target}` writes the whole policy."
        )
    stored = read_config(place, base)
    if own_folder(place, "policy") or is_adapter(place) or stored is None or "text_config" in stored:
        raise CheckpointError(
            f"--to adapter: transformers has no decoder {base!r} to put the adapters on. Write the whole policy by "
            f"`pbrl convert {source} {target}`; for adapters, train beside a Hugging Face folder of a text model."
        )
    if is_fused(stored["model_type"]):
        raise CheckpointError(
            f"--to adapter: {base!r} keeps query, key and value in one matrix, and gate and up in another, which the "
            f"run's adapters do not fit. Write the whole policy by `pbrl convert {source} {target}`."
        )
    adapters, step = saved_adapters(work)
    write_adapter(target, adapters, config.lora, base, open_weights(place))
    print(f"{target}: the adapters of step {step}, {count_parameters(adapters):,} parameters, for {base}, read back.")


def _real(path: str | os.PathLike) -> str:
    """A local path without symbolic links."""
    name = os.fspath(as_path(path))
    return name if is_remote(name) else os.path.realpath(name)


def refuse_target(source: str, target: str, form: str) -> None:
    """Raise ConfigError where OUT is what is read, by whatever name, the work directory of a run, or, for adapters, a
    complete model, beside which they would not be read."""
    place = os.fspath(as_path(source))
    own = [] if is_remote(place) else [own_folder(place, kind) for kind in ("policy", "encoder", "comet")]
    if _real(target) in {_real(name) for name in (source, base_of(place), *filter(None, own))}:
        raise ConfigError(f"IN and OUT are both {target!r}. Name another folder for OUT: IN stays as it is.")
    stored = read_json_object(as_path(target) / "config.json")
    if stored and not is_model_config(stored):
        raise ConfigError(
            f"{target!r} holds a config.json of a run, whose settings would be lost. Name another folder for OUT."
        )
    if stored and form == "adapter":
        raise ConfigError(f"{target!r} holds a model, beside which adapters are not read. Name another folder for OUT.")


def main(source: str, target: str, dtype: str | None = None, form: str = "hf", pooling: str | None = None) -> None:
    """Read a policy, an encoder or a translator and write it; a folder of unbabel-comet becomes one of ours.

    Args:
      source: a folder in either form, a finished work directory (its policy), a folder of COMET, of M2M100 or of NLLB,
        a hub id, or `gs://...`.
      target: another folder.
      dtype: type of the written parameters, float32 or bfloat16; default: as they are stored.
      form: a name in FORMS.
      pooling: of an encoder whose folder does not say it: mean, cls or last.

    Raises:
      PbrlError: what cannot be read or written; the same folder twice.
    """
    if form not in FORMS:
        raise ConfigError(f"--to is {form!r}; expected {' or '.join(FORMS)}.")
    if dtype is not None and dtype not in PARAM_TYPES[:2]:
        raise ConfigError(f"--dtype is {dtype!r}; expected {' or '.join(PARAM_TYPES[:2])}.")
    refuse_target(source, target, form)
    if form == "pbrl" and (as_path(target) / "config.json").exists():
        raise ConfigError(f"{target!r} holds a config.json, of a model or a run. Name another folder for OUT.")
    if form == "adapter":
        if dtype:
            raise ConfigError("--to adapter: adapters are float32, as they were trained. Leave --dtype out.")
        convert_adapter(source, target)
        return
    place = local_copy(source)
    if is_comet(place):
        params = convert_comet(source, target, dtype).params
        kind = jax.tree.leaves(params)[0].dtype
        print(f"{target}: a COMET model, {count_parameters(params):,} parameters in {kind}, read back and compared.")
        return
    if (read_config(place, source) or {}).get("model_type") == MODEL_TYPE:
        convert_translator(source, target, place, dtype, form)
        return
    if is_encoder(place, source):
        convert_encoder(source, target, place, dtype, form, pooling)
        return
    if pooling:
        raise ConfigError(f"--pooling is for encoders, and {source!r} is none. Leave it out.")
    policy = load_policy(source, param_dtype=dtype or "stored")
    if form == "hf":
        export_policy(policy, target)
    else:
        save_policy(policy, target)
        load_policy(target, param_dtype="stored")
    kind = str(widest_type(policy.params))
    written = "a policy of this package" if own_folder(target, "policy") else "a Hugging Face model"
    print(f"{target}: {written}, {count_parameters(policy.params):,} parameters in {kind}, read back and compared.")
