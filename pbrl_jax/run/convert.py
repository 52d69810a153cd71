"""`pbrl convert IN OUT`: a policy from one form into the other, or into another type; COMET into safetensors."""

import os

from pbrl_jax.assets.comet import convert_comet, load_comet
from pbrl_jax.assets.comet_checkpoint import CHECKPOINT, HPARAMS
from pbrl_jax.assets.folders import own_folder
from pbrl_jax.assets.hf_export import export_policy
from pbrl_jax.assets.hub import local_copy
from pbrl_jax.assets.policy import PARAM_TYPES, load_policy, save_policy
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import as_path
from pbrl_jax.core.trees import count_parameters

#: Form of a folder -> what it is for.
FORMS = {
    "hf": "config.json, safetensors and tokenizer: transformers, vLLM and the hub",
    "pbrl": "the form that `pbrl train` and `pbrl sft` write",
}


def main(source: str, target: str, dtype: str | None = None, form: str = "hf") -> None:
    """Read a policy and write it; a folder of unbabel-comet is written as what load_comet reads fastest.

    Args:
      source: a folder in either form, a finished work directory, a folder of COMET, a hub id, or `gs://...`.
      target: another folder.
      dtype: type of the written parameters, float32 or bfloat16; default: as they are stored.
      form: a name in FORMS.

    Raises:
      PbrlError: what cannot be read or written; the same folder twice.
    """
    if form not in FORMS:
        raise ConfigError(f"--to is {form!r}; expected {' or '.join(FORMS)}.")
    if dtype is not None and dtype not in PARAM_TYPES[:2]:
        raise ConfigError(f"--dtype is {dtype!r}; expected {' or '.join(PARAM_TYPES[:2])}.")
    if os.fspath(as_path(source)) == os.fspath(as_path(target)):
        raise ConfigError(f"IN and OUT are both {target!r}. Name another folder for OUT: IN stays as it is.")
    if form == "pbrl" and (as_path(target) / "config.json").exists():
        raise ConfigError(f"{target!r} holds a config.json, of a model or a run. Name another folder for OUT.")
    place = local_copy(source)
    if all(os.path.exists(os.path.join(place, name)) for name in (CHECKPOINT, HPARAMS)):
        convert_comet(source, target, dtype or "float32")
        parameters = count_parameters(load_comet(target).params)
        print(f"{target}: a COMET model, {parameters:,} parameters in {dtype or 'float32'}, read back.")
        return
    policy = load_policy(source, param_dtype=dtype or "stored")
    if form == "hf":
        export_policy(policy, target)
    else:
        save_policy(policy, target)
        load_policy(target, param_dtype="stored")
    kind = str(policy.params["embed"].dtype)
    written = "a policy of this package" if own_folder(target, "policy") else "a Hugging Face model"
    print(f"{target}: {written}, {count_parameters(policy.params):,} parameters in {kind}, read back and compared.")
