"""Export of encoders as sentence-transformers folders, in the format that all of its versions read."""

from typing import Any

import jax
import numpy as np
from etils import epath

from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.trees import flat_paths
from pbrl_jax.models.specs import DecoderEncoderSpec, DenseSpec, EncoderSpec
from pbrl_jax.text.hf_tokenizer import GENERATION_CONFIG
from pbrl_jax.text.sentencepiece_json import write_tokenizer_json
from pbrl_jax.text.tokenizers import SentencePieceTokenizer, XlmrTokenizer
from pbrl_jax.weights.encoders import Encoder, load_encoder, with_compute
from pbrl_jax.weights.hf_decoder import hf_config
from pbrl_jax.weights.hf_encoder import SIZES, dense_names, transformer_names
from pbrl_jax.weights.sentence_transformers import MODULES, POOLINGS
from pbrl_jax.weights.tensors import CONFIG
from pbrl_jax.weights.writing import differing_parameters, marking, refuse_differences, write_json, write_module

#: Activation of a Dense module -> torch's class.
TORCH_CLASSES = {
    "identity": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
    "relu": "torch.nn.modules.activation.ReLU",
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
    "gelu": "torch.nn.modules.activation.GELU",
}
ARCHITECTURES = {
    "bert": "BertModel", "xlm-roberta": "XLMRobertaModel", "xlm-roberta-xl": "XLMRobertaXLModel", "gte": "GteModel",
}  # fmt: skip
SAMPLE = ("Jibu ni 12.", "答案是 12。 She has five apples and gives two of them away.")
#: Largest difference of entries of unit vectors that rounding in another memory layout may cause.
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}


def export_encoder(encoder: Encoder, directory: str) -> None:
    """Write a sentence-transformers folder with the parameters in their own type; modules.json is written last.

    The folder is read back and compared: parameters must be bit-equal, and the vectors of two texts nearly equal.

    Args:
      encoder: the encoder.
      directory: the folder, local or `gs://...`; existing files are replaced.

    Raises:
      CheckpointError: no model family has this spec, the folder holds an encoder of this package, or it reads back
        differently.
    """
    folder = epath.Path(directory)
    if (folder / "pbrl_encoder.json").exists():
        raise CheckpointError(f"{directory} holds an encoder of this package. Name another folder.")
    config = transformer_config(encoder, np.dtype(jax.tree.leaves(encoder.params)[0].dtype).name)
    folder.mkdir(parents=True, exist_ok=True)
    with marking(folder, MODULES):
        write_module(folder, config, encoder.params, transformer_names(encoder.spec))
        _write_tokenizer(encoder, folder)
        write_json(folder / MODULES, _write_settings(encoder, folder))
        _check(encoder, str(directory))


def _write_settings(encoder: Encoder, folder: epath.Path) -> list[dict[str, Any]]:
    """Write the other modules, the length and the prompts; the content of modules.json is returned."""
    spec = encoder.spec
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    flags = {flag: spec.pooling == ours for ours, (_, flag) in POOLINGS.items()}
    width = spec.decoder.width if isinstance(spec, DecoderEncoderSpec) else spec.width
    write_json(folder / "1_Pooling" / CONFIG, {"word_embedding_dimension": width, **flags, "include_prompt": True})
    for name, dense in _dense_maps(spec):
        place = f"{len(modules)}_Dense"
        settings = {
            "in_features": width, "out_features": dense.width, "bias": dense.bias,
            "activation_function": TORCH_CLASSES[dense.activation],
        }  # fmt: skip
        write_module(folder / place, settings, encoder.params[name], dense_names(dense, width))
        modules.append(("Dense", place))
        width = dense.width
    modules.append(("Normalize", f"{len(modules)}_Normalize"))
    (folder / modules[-1][1]).mkdir(exist_ok=True)
    special = len(spec.begin_ids) + len(spec.end_ids)
    limit = {"max_seq_length": encoder.max_length + special}
    write_json(folder / "sentence_bert_config.json", limit | {"do_lower_case": False})
    prompts = dict(encoder.prompts)
    default = next((name for name, text in prompts.items() if text == encoder.prefix), "default")
    prompts |= {default: encoder.prefix} if encoder.prefix else {}
    named = {"prompts": prompts, "default_prompt_name": default if encoder.prefix else None}
    write_json(folder / "config_sentence_transformers.json", {**named, "similarity_fn_name": "cosine"})
    return [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
        for index, (name, path) in enumerate(modules)
    ]


def transformer_config(encoder: Encoder, dtype: str) -> dict[str, Any]:
    """The `config.json` of the transformer, which `encoder_spec` or `decoder_spec` maps to the same spec.

    Raises:
      CheckpointError: no family of transformers has this spec.
    """
    spec = encoder.spec
    if isinstance(spec, DecoderEncoderSpec):
        config = hf_config(spec.decoder, {"max_position_embeddings": spec.max_positions}, dtype)
        # Gemma 3's class without a head has a name of its own.
        model = "TextModel" if config["model_type"] == "gemma3_text" else "Model"
        config["architectures"] = [name.replace("ForCausalLM", model) for name in config["architectures"]]
        if spec.bidirectional:
            # The window in the file covers both sides.
            both = {"sliding_window": 2 * (spec.decoder.window - 1)} if spec.decoder.window else {}
            config |= {"use_bidirectional_attention": True, **both}
        return config
    family = "xlm-roberta-xl" if spec.pre_norm else "xlm-roberta" if spec.position_offset else "bert"
    if spec.pre_norm and not spec.position_offset:
        raise CheckpointError(
            "No family of transformers has pre_norm=True with position_offset=0. Known: BERT (False, 0), XLM-R "
            "(False, 2), XLM-R-XL (True, 2)."
        )
    rope = {}
    if spec.rope_theta:
        family, kind = "gte", "default" if spec.rope_factor == 1.0 else "linear"
        rope = {"rope_parameters": {"rope_type": kind, "rope_theta": spec.rope_theta, "factor": spec.rope_factor}}
    return {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        **{theirs: getattr(spec, ours) for ours, theirs in SIZES.items()},
        "hidden_act": "gelu",
        "layer_norm_eps": spec.norm_eps,
        # Positions of this family start after the padding id.
        "pad_token_id": spec.position_offset - 1 if spec.position_offset else encoder.tokenizer.pad_id,
        "torch_dtype": dtype,
        **rope,
    }


def _dense_maps(spec: EncoderSpec | DecoderEncoderSpec) -> list[tuple[str, DenseSpec]]:
    """(our parameter name, its spec) of each linear map after pooling."""
    width = spec.projection if isinstance(spec, EncoderSpec) else 0
    first = [("projection", DenseSpec(width))] if width else []
    return first + [(f"dense_{index}", dense) for index, dense in enumerate(spec.dense)]


def _write_tokenizer(encoder: Encoder, folder: epath.Path) -> None:
    tokenizer = encoder.tokenizer
    tokenizer.save(str(folder))
    (folder / GENERATION_CONFIG).unlink(missing_ok=True)
    if isinstance(tokenizer, XlmrTokenizer):
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer"})
    elif isinstance(tokenizer, SentencePieceTokenizer):
        problem = write_tokenizer_json(tokenizer, folder, begin=False)
        if problem:
            raise CheckpointError(f"The tokenizer cannot be written for sentence-transformers: {problem}.")


def _check(encoder: Encoder, directory: str) -> None:
    """Read the folder back and compare it with the encoder.

    Raises:
      CheckpointError: a parameter, setting or vector that differs.
    """
    kind = np.dtype(jax.tree.leaves(encoder.params)[0].dtype).name
    exported = load_encoder(directory, dtype=kind)
    params = encoder.params
    if "projection" in params:
        params = {name: leaf for name, leaf in params.items() if name != "projection"}
        maps = [encoder.params[name] for name, _ in _dense_maps(encoder.spec)]
        params |= {f"dense_{index}": leaf for index, leaf in enumerate(maps)}
    if flat_paths(params).keys() != flat_paths(exported.params).keys():
        raise CheckpointError(f"{directory} reads back with other parameters than it was written from. Report it.")
    problems = differing_parameters(params, exported.params)
    for name in ("max_length", "prefix"):
        if getattr(exported, name) != getattr(encoder, name):
            problems.append(f"{name} is {getattr(exported, name)!r}, not {getattr(encoder, name)!r}")
    if exported.tokenizer.encode_batch(SAMPLE) != encoder.tokenizer.encode_batch(SAMPLE):
        problems.append("the tokenizer gives other ids")
    original = encoder._replace(spec=with_compute(encoder.spec, kind))
    difference = float(np.abs(exported.embed(SAMPLE) - original.embed(SAMPLE)).max())
    if not difference <= TOLERANCES[kind]:
        problems.append(f"vectors differ by {difference:.3g}")
    refuse_differences(directory, problems, MODULES)
