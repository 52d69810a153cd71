"""Encoder configurations of Hugging Face folders, XLM-R-XL's states, and the sizes of released models."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algos.oracle_checks import CASES
from hf_weights import PREFIX, Weights, encoder_params
from hf_weights import encoder_spec as spec_by_hand
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.trees import count_parameters, flat_paths, map_with_path, match_rules
from pbrl_jax.models.encoder import TextEncoder, encoder_axes, init_encoder
from pbrl_jax.models.specs import DecoderEncoderSpec, DenseSpec, tiny_decoder, tiny_encoder
from pbrl_jax.weights.folders import abstract_tree
from pbrl_jax.weights.hf_encoder import dense_names, encoder_names, encoder_spec
from pbrl_jax.weights.tensors import load_params, open_weights

FIXTURES = Path(__file__).parents[1] / "fixtures" / "hf"
BGE_M3 = {
    "architectures": ["XLMRobertaModel"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0,
    "classifier_dropout": None, "eos_token_id": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
    "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 4096, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 8194, "model_type": "xlm-roberta", "num_attention_heads": 16, "num_hidden_layers": 24,
    "output_past": True, "pad_token_id": 1, "position_embedding_type": "absolute", "torch_dtype": "float32",
    "transformers_version": "4.33.0", "type_vocab_size": 1, "use_cache": True, "vocab_size": 250002,
}  # fmt: skip
LABSE = {
    "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "directionality": "bidi",
    "gradient_checkpointing": False, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768,
    "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
    "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
    "pooler_fc_size": 768, "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3, "pooler_size_per_head": 128,
    "pooler_type": "first_token_transform", "position_embedding_type": "absolute", "type_vocab_size": 2,
    "vocab_size": 501153,
}  # fmt: skip


def abstract(spec):
    return abstract_tree(init_encoder, spec)


def test_released_models_have_their_published_sizes():
    """bge-m3 is published with 567,754,752 parameters, LaBSE with 470,926,848, each with a pooler that nothing reads.

    LaBSE's Dense module happens to have the size of its pooler.
    """
    assert count_parameters(abstract(encoder_spec(BGE_M3))) == 567_754_752 - (1024 * 1024 + 1024)
    assert count_parameters(abstract(encoder_spec(LABSE))) == 470_926_848 - (768 * 768 + 768)
    chain = encoder_spec(LABSE, pooling="cls", dense=(DenseSpec(768, "tanh"),))
    assert count_parameters(abstract(chain)) == 470_926_848
    assert (encoder_spec(BGE_M3).text_tokens, encoder_spec(LABSE).text_tokens) == (8192, 512)
    assert encoder_spec(BGE_M3, begin_ids=(0,), end_ids=(2,)).text_tokens == 8190


@pytest.mark.parametrize("name", ["hf.bert", "hf.xlmr"])
def test_config_and_weights_of_the_oracles_become_ours(name):
    """The same spec and, bit for bit, the same parameters as by the tests' own table, which the oracles check."""
    case = CASES[name]
    spec = encoder_spec(case.config)
    assert spec == spec_by_hand(case.config)
    stored = {key: np.asarray(case.input(key)) for key in case.inputs}
    expected = encoder_params(Weights(stored), spec)
    tensors = {key.removeprefix(PREFIX): value for key, value in stored.items() if key.startswith(PREFIX)}
    params = load_params({f"bert.{key}": value for key, value in tensors.items()}, encoder_names(spec))
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("changes", [{}, {"pre_norm": True}, {"gated": True, "rope_theta": 1e4}])
def test_every_parameter_has_a_name(changes):
    spec = tiny_encoder(**changes, projection=0, layers=3)
    found = {}
    map_with_path(lambda path, leaf: found.__setitem__(path, leaf.shape), abstract(spec))
    names = encoder_names(spec)
    assert found == {path: stored.full_shape() for path, stored in names.items()}
    tensors = [(name, stored.part) for stored in names.values() for name in stored.names()]
    assert len(set(tensors)) == len(tensors)


@pytest.mark.parametrize(
    "spec",
    [
        tiny_encoder(pre_norm=True, dense=(DenseSpec(5, "tanh"), DenseSpec(3, bias=False))),
        DecoderEncoderSpec(tiny_decoder(), 64, dense=(DenseSpec(5, bias=False),)),
    ],
)
def test_matrices_are_cut_along_the_width_in_training(spec):
    shapes = abstract(spec)
    axes = match_rules(shapes, encoder_axes(spec))
    times = flat_paths(jax.tree.map(lambda _, names: names.count("width"), shapes, axes))
    assert set(times.values()) == {0, 1}
    kernels = {path for path in times if path.endswith("kernel")}
    assert {path for path in kernels if times[path]} == {path for path in kernels if "dense" not in path}
    assert all(jax.tree.leaves(jax.tree.map(lambda leaf, names: leaf.ndim == len(names), shapes, axes)))
    width = spec.embedding_width
    assert shapes[f"dense_{len(spec.dense) - 1}"]["kernel"].shape[1] == width


def test_dense_names_are_those_of_their_file():
    names = dense_names(DenseSpec(5, bias=False), 3)
    assert {path: (one.template, one.shape, one.transpose) for path, one in names.items()} == {
        "kernel": ("linear.weight", (3, 5), True)
    }
    assert dense_names(DenseSpec(5), 3)["bias"].shape == (5,)


@pytest.mark.parametrize("start", ["right", "left"])
def test_xlmr_xl_states_of_every_layer(start):
    """Padding included: its queries too see the real tokens, and its position is the one before the first."""
    folder = FIXTURES / "xlmr_xl"
    spec = encoder_spec(json.loads((folder / "config.json").read_text()))
    params = load_params(open_weights(folder), encoder_names(spec))
    with np.load(folder / "expected.npz") as data:
        tokens, mask, expected = data["tokens"], data["mask"] > 0, data["states"]
    if start == "left":
        places = (np.arange(tokens.shape[1]) + mask.sum(axis=1, keepdims=True)) % tokens.shape[1]
        tokens, mask = (np.take_along_axis(x, places, axis=1) for x in (tokens, mask))
        expected = np.take_along_axis(expected, places[None, :, :, None], axis=2)
    states = jax.jit(lambda *args: TextEncoder(spec).apply({"params": params}, *args, all_states=True))(
        jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)
    )
    assert states.shape == expected.shape and states.shape[0] == spec.layers + 1 and np.abs(expected).max() > 1
    np.testing.assert_allclose(states, expected, rtol=0, atol=1e-5)
    alone = jax.jit(lambda *args: TextEncoder(spec).apply({"params": params}, *args))(
        jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)
    )
    np.testing.assert_allclose(alone, states[-1], atol=1e-6)


def test_all_states_of_post_norm_layers_end_in_the_result():
    spec = tiny_encoder(layers=2, projection=0)
    params = init_encoder(jax.random.key(0), spec)
    tokens, mask = jnp.array([[4, 9, 2]]), jnp.ones((1, 3), bool)
    states = TextEncoder(spec).apply({"params": params}, tokens, mask, all_states=True)
    np.testing.assert_allclose(states[-1], TextEncoder(spec).apply({"params": params}, tokens, mask), atol=1e-6)
    assert all(np.abs(states[i] - states[i + 1]).max() > 1e-3 for i in range(2))


#: gte-multilingual-base, whose own code (`new`) scales RoPE by `ntk`, and Arctic-embed 2 M, which names it gte.
GTE_MULTILINGUAL = {
    "model_type": "new", "architectures": ["NewModel"], "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    "layer_norm_type": "layer_norm", "logn_attention_clip1": False, "logn_attention_scale": False, "pack_qkv": True,
    "max_position_embeddings": 8192, "position_embedding_type": "rope", "rope_scaling": {"factor": 8.0, "type": "ntk"},
    "rope_theta": 20_000, "type_vocab_size": 1, "unpad_inputs": False, "use_memory_efficient_attention": False,
    "vocab_size": 250_048, "pad_token_id": 1, "classifier_dropout": 0.0,
}  # fmt: skip


def test_gte_as_the_hub_has_it():
    spec = encoder_spec(GTE_MULTILINGUAL)
    assert (spec.rope_theta, spec.max_positions, spec.position_offset, spec.gated) == (160_000.0, 8192, 0, True)
    assert spec.rope_factor == pytest.approx(8 ** (2 / 64))
    switches = {"unpad_inputs": "false", "use_memory_efficient_attention": "false", "matryoshka_dimensions": [256]}
    plain = {"model_type": "gte", "rope_scaling": None, "rope_theta": 160_000}
    arctic = encoder_spec({**GTE_MULTILINGUAL, **plain, **switches})
    assert (arctic.rope_theta, arctic.rope_factor) == (160_000.0, 1.0)
    changes = {"logn_attention_scale": True, "pack_qkv": False, "rope_scaling": {"type": "yarn", "factor": 2}}
    for name, message in zip(changes, ("logn_attention_scale is True", "pack_qkv is False", "yarn"), strict=True):
        change = {name: changes[name]}
        with pytest.raises(CheckpointError, match=message):
            encoder_spec({**GTE_MULTILINGUAL, **change})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'.*supported is 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"position_embedding_type": "rotary", "lora_adaptations": ["x"]}, "position_embedding_type is 'rotary'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"quantization_config": {"quant_method": "fp8"}}, "'fp8'}: the weights are quantised.*in bfloat16"),
        ({"rotary": 4}, "not understood: rotary=4"),
        ({"num_attention_heads": 7}, "hidden_size=1024 does not divide by num_attention_heads=7"),
        ({"hidden_size": None}, "hidden_size is None; expected"),
        ({"model_type": "deberta-v2"}, "model_type 'deberta-v2'. Known: bert, gte, new, xlm-roberta, xlm-roberta-xl"),
        ({"model_type": "xlm-robertaxl"}, "Did you mean 'xlm-roberta-xl'"),
    ],
)
def test_a_field_that_would_change_the_model_is_named(change, message):
    with pytest.raises(CheckpointError, match=message):
        encoder_spec({**BGE_M3, **change})


def test_a_missing_field_is_named():
    with pytest.raises(CheckpointError, match="no 'intermediate_size'"):
        encoder_spec({name: value for name, value in BGE_M3.items() if name != "intermediate_size"})
