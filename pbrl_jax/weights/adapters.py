"""LoRA adapters in PEFT's format: merged into their base model while its weights are read, and written from a run.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, whose tensors are named after the base's modules:
`base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` [rank, in] and `lora_B.weight` [out, rank] add
scale * B @ A to `...q_proj.weight`; a tensor without `lora_` replaces that of the base. Tests compare with PEFT.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from pbrl_jax.config.tree import LoraConfig
from pbrl_jax.core.errors import CheckpointError, PbrlError
from pbrl_jax.core.paths import read_json_object
from pbrl_jax.core.trees import flat_paths
from pbrl_jax.weights.hf_fields import ConfigFields
from pbrl_jax.weights.hub import is_hub_id
from pbrl_jax.weights.safetensors_file import Planned, RemoteTensor, Tensor, located, write_safetensors
from pbrl_jax.weights.tensors import TORCH_WEIGHTS, WEIGHTS, Weights, open_weights, plain_name
from pbrl_jax.weights.writing import marking, refuse_differences, write_json

CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS, ADAPTER_TORCH_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"
BASE = "base_model_name_or_path"

#: Fields that do not change the merged weights; modules and ranks of adapters are known from the tensors.
NOT_READ = (
    "auto_mapping", "bias", "corda_config", "eva_config", "exclude_modules", "inference_mode", "layers_pattern",
    "layers_to_transform", "lora_ga_config", "loftq_config", "megatron_core", "modules_to_save", "qalora_group_size",
    "r", "rank_pattern", "runtime_config", "target_modules", "task_type",
)  # fmt: skip
#: Values of init_lora_weights that do not change the base's weights.
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
#: Fields of features that are not supported; they must be off.
REFUSED = (
    "alora_invocation_tokens", "arrow_config", "fan_in_fan_out", "kasa_config", "layer_replication", "lora_bias",
    "megatron_config", "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora",
    "velora_config",
)  # fmt: skip
PART = re.compile(r"(.*?)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight)?")

#: Our projection -> the module in transformers.
MODULES = {
    **{name: f"self_attn.{name[0]}_proj" for name in ("query", "key", "value", "out")},
    **{f"mlp/{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}


def in_memory(tensor: Tensor) -> np.ndarray:
    """The values of a tensor, read if it is remote."""
    return tensor.rows(0, tensor.shape[0]) if isinstance(tensor, RemoteTensor) else tensor


class AdaptedTensor(RemoteTensor):
    """A matrix [O, I] of the base with an adapter: W + scale * high @ low, computed in float32 when its rows are read.
    With `magnitude` [O], each row is scaled to that norm (DoRA, Liu et al. 2024, arXiv 2402.09353)."""

    def __init__(self, base: Tensor, low_RI, high_OR, scale: float, magnitude_O=None, *, exact: bool):
        self.base, self.scale, self.magnitude_O = base, scale, magnitude_O
        self.low_RI, self.high_OR = low_RI.astype(np.float32), high_OR.astype(np.float32)
        self.dtype = np.dtype(np.float32) if exact else base.dtype
        self.shape, self.size = base.shape, base.size

    def rows(self, start: int, stop: int) -> np.ndarray:
        result = np.empty(self.shape, self.dtype)
        base = self.base.rows(start, stop) if isinstance(self.base, RemoteTensor) else self.base
        merged = base[start:stop].astype(np.float32) + self.scale * (self.high_OR[start:stop] @ self.low_RI)
        if self.magnitude_O is not None:
            norm = np.linalg.norm(merged, axis=1, keepdims=True)
            merged = merged / norm * self.magnitude_O[start:stop, None].astype(np.float32)
        result[start:stop] = merged.astype(self.dtype)
        return result

    def elements(self, start: int, stop: int) -> np.ndarray:
        width = self.shape[1]
        first, last = start // width, min(-(-stop // width), self.shape[0])
        return self.rows(first, last)[first:last].reshape(-1)[start - first * width : stop - first * width]


class Adapter(NamedTuple):
    """An adapter in a local folder."""

    folder: str
    #: The name that the user gave.
    source: str
    #: Folder or hub id of the base model.
    base: str
    tensors: Weights
    alpha: float
    #: Regular expression of the end of a module's name -> its alpha.
    alphas: dict[str, float]
    #: Divide alpha by the square root of the rank instead of the rank (rsLoRA).
    rooted: bool
    #: The output matrix of a tied base stays its embedding, also where the adapter changes that.
    keeps_tie: bool = False

    def scale(self, module: str, rank: int) -> float:
        """The factor of high @ low for a module."""
        matches = (value for key, value in self.alphas.items() if re.fullmatch(rf"(.*\.)?({key})", module))
        return next(matches, self.alpha) / (rank**0.5 if self.rooted else rank)

    def vocabulary(self) -> int:
        """Rows of an embedding that the adapter replaces; 0 if it has none."""
        embeddings = [name for name in self.tensors if re.search(r"embed_tokens\.(.*\.)?weight$", name)]
        return self.tensors[embeddings[0]].shape[0] if embeddings else 0

    def applied(self, base: Mapping[str, Tensor], tied: bool, exact: bool) -> Weights:
        """The base's tensors with the adapter merged in.

        Args:
          tied: the base's output matrix is its embedding. If the adapter changes only the embedding, the output matrix
            is the base's embedding, except with `keeps_tie`.
          exact: adapted tensors are float32; otherwise they are rounded to the type of the base.

        Raises:
          CheckpointError: a tensor without a counterpart in the base, or of another shape.
        """
        names, problems = {plain_name(name): name for name in base}, []
        parts: dict[str, dict[str, np.ndarray]] = {}
        result: dict[str, Tensor] = dict(base)
        for name, tensor in self.tensors.items():
            module = name.removeprefix("base_model.model.")
            if match := PART.fullmatch(module):
                parts.setdefault(match[1], {})[match[2]] = in_memory(tensor)
                continue
            plain = plain_name(re.sub(r"\.(modules_to_save(\.default)?|base_layer)\b", "", module))
            place = names.get(plain, plain if plain == "lm_head.weight" else None)
            if place is None or "lora_" in module:
                problems.append(f"{name} has no place in the base")
            else:
                result[place] = tensor
        for module, part in parts.items():
            place = names.get(plain_name(f"{module}.weight"))
            if module.endswith("lm_head") and place is None and tied:
                place, base = "lm_head.weight", {**base, "lm_head.weight": base[names["embed_tokens.weight"]]}
            if place is None:
                problems.append(f"{module} is no module of the base")
                continue
            adapted = self._adapted(module, part, result.get(place, base.get(place)), exact)
            problems += [adapted] if isinstance(adapted, str) else []
            result[place] = adapted  # type: ignore[assignment]
        embed = names.get("embed_tokens.weight", "")
        untied = tied and not self.keeps_tie and "lm_head.weight" not in names
        # A resized embedding was saved, not trained: it is still tied.
        if untied and embed and result[embed] is not base[embed] and result[embed].shape == base[embed].shape:
            result.setdefault("lm_head.weight", base[embed])
        if problems:
            raise CheckpointError(
                f"{self.source!r} is no adapter of {self.base!r}: {'; '.join(problems[:8])}. Check {BASE} in {CONFIG}."
            )
        return Weights([result], f"{self.base} with {self.source}")

    def _adapted(self, module: str, part: dict[str, np.ndarray], base: Any, exact: bool) -> AdaptedTensor | str:
        if {"lora_embedding_A", "lora_embedding_B"} <= part.keys():
            low, high = part["lora_embedding_B"].T, part["lora_embedding_A"].T
        elif {"lora_A", "lora_B"} <= part.keys():
            low, high = part["lora_A"], part["lora_B"]
        else:
            return f"{module} has {', '.join(sorted(part))} alone"
        if low.shape[0] != high.shape[1] or (high.shape[0], low.shape[1]) != tuple(base.shape):
            return f"{module} has adapters of {high.shape} and {low.shape}, its matrix is {tuple(base.shape)}"
        magnitude = part.get("lora_magnitude_vector")
        magnitude = None if magnitude is None else magnitude.reshape(-1)
        if magnitude is not None and len(magnitude) != len(high):
            return f"{module} has a magnitude of {len(magnitude)}, its matrix has {len(high)} rows"
        return AdaptedTensor(base, low, high, self.scale(module, len(low)), magnitude, exact=exact)


def is_adapter(place: str) -> bool:
    """Whether a local folder holds an adapter of PEFT and no complete model."""
    models = (WEIGHTS, f"{WEIGHTS}.index.json", TORCH_WEIGHTS, f"{TORCH_WEIGHTS}.index.json")
    has_config = os.path.exists(os.path.join(place, CONFIG))
    return has_config and not any(located(os.path.join(place, name)) for name in models)


def read_adapter(place: str, source: str) -> Adapter:
    """The adapter in a local folder.

    Raises:
      CheckpointError: an adapter that is not LoRA, an unknown field, no base, or no weights.
    """
    where = f"{CONFIG} of {source!r}"
    fields = ConfigFields(read_json_object(os.path.join(place, CONFIG)), {}, where)
    kind = fields.take("peft_type", None)
    if kind != "LORA":
        raise CheckpointError(f"{where}: peft_type is {kind!r}; supported is 'LORA'. Merge it with PEFT.")
    for name in REFUSED:
        fields.expect(name, None, False, [], {})
    fields.expect("init_lora_weights", *PLAIN_STARTS)
    for name in (*NOT_READ, "use_dora"):
        fields.take(name, None)
    expected = "the folder or hub id of the model it belongs to"
    base = fields.checked(BASE, None, lambda x: isinstance(x, str) and x != "", expected)
    revision, inside = fields.take("revision", None), os.path.join(place, base)
    if not os.path.exists(base) and os.path.isdir(inside):
        base = inside
    elif revision and is_hub_id(base):
        base = f"{base}@{revision}"
    pattern = fields.checked("alpha_pattern", None, _are_numbers, "an object of modules and their alpha") or {}
    alphas = {key: float(value) for key, value in pattern.items()}
    rooted, alpha = fields.flag("use_rslora", False), fields.number("lora_alpha", 8)
    keeps_tie = fields.flag("ensure_weight_tying", False)
    fields.finish()
    file = next((f for f in (ADAPTER_WEIGHTS, ADAPTER_TORCH_WEIGHTS) if located(os.path.join(place, f))), None)
    if file is None:
        raise CheckpointError(f"{source!r} holds {CONFIG}, but no {ADAPTER_WEIGHTS}. Copy the whole folder.")
    return Adapter(place, source, base, open_weights(place, file), alpha, alphas, rooted, keeps_tie)


def _are_numbers(pattern: Any) -> bool:
    return not pattern or (isinstance(pattern, Mapping) and all(type(x) in (int, float) for x in pattern.values()))


@contextlib.contextmanager
def reading_base(source: str, base: str) -> Iterator[None]:
    """Add the name of an adapter to errors of the block, which reads the adapter's base."""
    try:
        yield
    except PbrlError as error:
        raise type(error)(f"{source!r} is a LoRA adapter for {base!r}, which cannot be read. {error}") from error


def base_of(source: str) -> str:
    """The base model of an adapter's folder; any other source is returned unchanged."""
    place = os.path.expanduser(source)
    return read_adapter(place, source).base if is_adapter(place) else source


def adapter_arrays(leaves: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """PEFT's tensors of our adapters, path -> array: `layers/query/lora_a` [N, inputs..., R], `lora_b` [N, R, ...]."""
    tensors = {}
    for path, leaf in leaves.items():
        stacked, (_, *middle, part) = np.asarray(jax.device_get(leaf), np.float32), path.split("/")
        module = MODULES["/".join(middle)]
        for layer, array in enumerate(stacked):
            matrix = array.reshape(-1, array.shape[-1]) if part == "lora_a" else array.reshape(len(array), -1)
            name = f"base_model.model.model.layers.{layer}.{module}.lora_{part[-1].upper()}.weight"
            tensors[name] = np.ascontiguousarray(matrix.T)
    return tensors


def write_adapter(directory: str, adapters: Any, lora: LoraConfig, base: str, stored: Mapping[str, Tensor]) -> None:
    """Write the adapters of a run in the format of PEFT, transformers and vLLM, and read them back. The config, which
    marks a complete folder, is written last.

    Args:
      adapters: the trained tree, {"layers": {"query": {"lora_a", "lora_b"}, ...}}.
      base: folder or hub id of the base model.
      stored: the base model's tensors.

    Raises:
      CheckpointError: the base has no such modules, or the folder reads back differently.
    """
    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = adapter_arrays(flat_paths(adapters))
    planned = [Planned(name, array.shape, array.dtype) for name, array in tensors.items()]
    name, _, revision = base.partition("@") if is_hub_id(base) else (base, "", "")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", BASE: name, "revision": revision or None,
        "inference_mode": True, "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
    }  # fmt: skip
    with marking(folder, CONFIG):
        write_safetensors(folder / ADAPTER_WEIGHTS, planned, iter(tensors.values()), {"format": "pt"})
        write_json(folder / CONFIG, config)
        adapter = read_adapter(str(folder), directory)._replace(base=base)
        adapter.applied(stored, tied=False, exact=True)
        equal = {name: np.array_equal(in_memory(adapter.tensors[name]), array) for name, array in tensors.items()}
        refuse_differences(directory, [f"{name} differs" for name in equal if not equal[name]], CONFIG)
