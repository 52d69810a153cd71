"""M2M100 and NLLB-200 out again: a folder that transformers loads."""

from typing import Any

import jax
import numpy as np
from etils import epath

from pbrl_jax.translate.m2m100_translator import M2M100Translator, load_m2m100
from pbrl_jax.weights.encoder_export import SAMPLE
from pbrl_jax.weights.hf_fields import read_config
from pbrl_jax.weights.hf_m2m100 import m2m100_names
from pbrl_jax.weights.hub import local_copy
from pbrl_jax.weights.tensors import CONFIG
from pbrl_jax.weights.writing import differing_parameters, refuse_differences, write_module


def export_translator(translator: M2M100Translator, directory: str) -> None:
    """Write safetensors in the type that the parameters have, the config.json that they came with, and the tokenizer.

    The folder is read back: every parameter must be the same bit for bit, and token ids must agree.

    Args:
      translator: from `load_m2m100`.
      directory: the folder, local or `gs://...`; files of these names are replaced.

    Raises:
      CheckpointError: what was read back is not what was written.
    """
    folder, kind = epath.Path(directory), np.dtype(jax.tree.leaves(translator.params)[0].dtype).name
    config: dict[str, Any] = {name: value for name, value in translator.config.items() if name != "dtype"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    translator.tokenizer.save(str(folder))
    names = m2m100_names(translator.spec)
    write_module(folder, {**config, "torch_dtype": kind}, translator.params, names)
    place = local_copy(str(directory))
    found = load_m2m100(place, read_config(place, str(directory)) or {}, str(directory))
    problems = differing_parameters(translator.params, found.params)
    if found.tokenizer.encode_batch(SAMPLE) != translator.tokenizer.encode_batch(SAMPLE):
        problems.append("the tokenizer gives other ids")
    if found.language_ids != translator.language_ids:
        problems.append("the tokenizer knows other languages")
    refuse_differences(directory, problems, CONFIG)
