"""Weights of the oracle models, as their authors name them, in our parameter trees. For tests alone.

Weights are looked up by their `state_dict` names, so nothing here depends on how the package loads released models.
A torch Linear holds [out, in], ours [in, out], with heads and head channels on axes of their own.
"""

import numpy as np

from pbrl_jax.models.specs import DecoderSpec, EncoderSpec, Llama3Scaling

PREFIX = "weight:"


class Weights:
    """The arrays under one prefix, each of which must be asked for before `all_used` is called."""

    def __init__(self, arrays: dict[str, np.ndarray], prefix: str = PREFIX):
        self.arrays = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
        assert self.arrays, f"no array whose name begins with {prefix}"
        self.used: set[str] = set()

    def __call__(self, name: str) -> np.ndarray:
        self.used.add(name)
        return self.arrays[name]

    def stacked(self, template: str, layers: int, *shape: int) -> np.ndarray:
        """One weight of every layer, transposed if it is a matrix, each reshaped to `shape`."""
        return np.stack([self(template.format(i)).T.reshape(shape or (-1,)) for i in range(layers)])

    def all_used(self, *without: str):
        unused = set(self.arrays) - self.used - set(without)
        assert not unused, f"weights that no parameter takes: {sorted(unused)}"


def decoder_spec(config: dict) -> DecoderSpec:
    """Our spec of a Hugging Face decoder configuration."""
    rope = config["rope_parameters"]
    scaling = None
    if rope["rope_type"] == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        scaling = Llama3Scaling(*(rope[name] for name in names))
    return DecoderSpec(
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        ffn=config["intermediate_size"],
        rope_theta=rope["rope_theta"],
        rope_scaling=scaling,
        norm_eps=config["rms_norm_eps"],
        qk_norm=config["model_type"] == "qwen3",
        qkv_bias=config["model_type"] == "qwen2",
        tied_embeddings=config["tie_word_embeddings"],
    )


def decoder_params(weights: Weights, spec: DecoderSpec) -> dict:
    """The tree of `init_decoder`; every weight of the model must find its place in it."""
    width, N = spec.width, spec.layers
    attention, mlp = "model.layers.{}.self_attn.", "model.layers.{}.mlp."
    layers = {
        "attention_norm": {"scale": weights.stacked("model.layers.{}.input_layernorm.weight", N)},
        "mlp_norm": {"scale": weights.stacked("model.layers.{}.post_attention_layernorm.weight", N)},
        "out": {"kernel": weights.stacked(f"{attention}o_proj.weight", N, spec.heads, spec.head_dim, width)},
        "mlp": {
            "gate": {"kernel": weights.stacked(f"{mlp}gate_proj.weight", N, width, spec.ffn)},
            "up": {"kernel": weights.stacked(f"{mlp}up_proj.weight", N, width, spec.ffn)},
            "down": {"kernel": weights.stacked(f"{mlp}down_proj.weight", N, spec.ffn, width)},
        },
    }
    for name, heads in (("query", spec.heads), ("key", spec.kv_heads), ("value", spec.kv_heads)):
        theirs = f"{attention}{name[0]}_proj"
        layers[name] = {"kernel": weights.stacked(f"{theirs}.weight", N, width, heads, spec.head_dim)}
        if spec.qkv_bias:
            layers[name]["bias"] = weights.stacked(f"{theirs}.bias", N, heads, spec.head_dim)
        if spec.qk_norm and name != "value":
            layers[f"{name}_norm"] = {"scale": weights.stacked(f"{attention}{name[0]}_norm.weight", N)}
    params = {
        "embed": weights("model.embed_tokens.weight"),
        "layers": layers,
        "final_norm": {"scale": weights("model.norm.weight")},
    }
    if not spec.tied_embeddings:
        params["lm_head"] = weights("lm_head.weight").T
    weights.all_used(*(("lm_head.weight",) if spec.tied_embeddings else ()))
    return params


def encoder_spec(config: dict) -> EncoderSpec:
    """Our spec of a BERT or XLM-R configuration."""
    return EncoderSpec(
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        ffn=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        position_offset={"bert": 0, "xlm-roberta": config["pad_token_id"] + 1}[config["model_type"]],
        type_vocab=config["type_vocab_size"],
        norm_eps=config["layer_norm_eps"],
    )


def encoder_params(weights: Weights, spec: EncoderSpec) -> dict:
    """The tree of `init_encoder`; BERT's pooler, which no sentence encoder uses, is left out."""
    width, N = spec.width, spec.layers
    head = (spec.heads, width // spec.heads)
    attention = "encoder.layer.{}.attention."

    def linear(theirs: str, fan_in: tuple[int, ...], fan_out: tuple[int, ...]) -> dict:
        return {
            "kernel": weights.stacked(f"{theirs}.weight", N, *fan_in, *fan_out),
            "bias": weights.stacked(f"{theirs}.bias", N, *fan_out),
        }

    def norm(theirs: str) -> dict:
        return {"scale": weights.stacked(f"{theirs}.weight", N), "bias": weights.stacked(f"{theirs}.bias", N)}

    params = {
        "word_embed": weights("embeddings.word_embeddings.weight"),
        "position_embed": weights("embeddings.position_embeddings.weight"),
        "type_embed": weights("embeddings.token_type_embeddings.weight"),
        "embed_norm": {"scale": weights("embeddings.LayerNorm.weight"), "bias": weights("embeddings.LayerNorm.bias")},
        "layers": {
            **{name: linear(f"{attention}self.{name}", (width,), head) for name in ("query", "key", "value")},
            "out": linear(f"{attention}output.dense", head, (width,)),
            "attention_norm": norm(f"{attention}output.LayerNorm"),
            "up": linear("encoder.layer.{}.intermediate.dense", (width,), (spec.ffn,)),
            "down": linear("encoder.layer.{}.output.dense", (spec.ffn,), (width,)),
            "mlp_norm": norm("encoder.layer.{}.output.LayerNorm"),
        },
    }
    weights.all_used("pooler.dense.weight", "pooler.dense.bias")
    return params
