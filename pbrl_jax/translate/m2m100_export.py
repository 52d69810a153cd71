"""M2M100 and NLLB-200 out again: a folder that transformers loads."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.trees import map_with_path
from pbrl_jax.translate.m2m100_translator import M2M100Translator, load_m2m100
from pbrl_jax.weights.encoder_export import CONFIG, SAMPLE, write_module
from pbrl_jax.weights.hf_load import read_config
from pbrl_jax.weights.hf_m2m100 import m2m100_names
from pbrl_jax.weights.hub import local_copy


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
    alike = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b, equal_nan=True)), translator.params, found.params)
    problems: list[str] = []
    map_with_path(lambda path, same: same or problems.append(f"{path} differs"), alike)
    if found.tokenizer.encode_batch(SAMPLE) != translator.tokenizer.encode_batch(SAMPLE):
        problems.append("the tokenizer gives other ids")
    if found.language_ids != translator.language_ids:
        problems.append("the tokenizer knows other languages")
    if problems:
        (folder / CONFIG).unlink(missing_ok=True)
        raise CheckpointError(
            f"{directory} was written, but reads back differently: {'; '.join(problems[:8])}. It is not marked as a "
            "model (config.json is removed). Check the disk and export again; if that does not help, report it."
        )
