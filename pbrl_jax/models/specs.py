"""Sizes and switches of models, as data.

Every field is read by a forward pass. Presets are named sizes for random initialisation; released models come with
their own `config.json`.
"""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Llama3Scaling:
    """Frequency-dependent RoPE scaling of Llama 3.1 and later (`rope_type: llama3`)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only transformer: RMSNorm, RoPE, grouped-query attention, gated feed-forward.

    The switches together define the model family: see pbrl_jax.weights.hf_decoder.family_of.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    #: Width of the feed-forward, or of each expert.
    ffn: int
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Scaling | None = None
    #: Divisor of positions (`rope_type: linear`); where there are local layers, in global layers only.
    rope_factor: float = 1.0
    #: Divisor of each plane's frequency (YaRN, LongRoPE), in global layers only as above; empty: all 1.
    rope_divisors: tuple[float, ...] = ()
    #: Factor of cosines and sines in the same layers (YaRN, LongRoPE).
    rope_magnitude: float = 1.0
    #: Channels of each head, from the first, that are rotated (Phi-4-mini); 0: all.
    rotary_dim: int = 0
    #: Planes are neighbouring channels (Cohere), and not those half a head apart.
    interleaved_rope: bool = False
    norm_eps: float = 1e-6
    #: RMSNorm of each query and key head before RoPE (Qwen3, Gemma 3).
    qk_norm: bool = False
    #: That norm is over all heads together (OLMo 2).
    joint_qk_norm: bool = False
    #: Bias on query, key and value projections (Qwen2).
    qkv_bias: bool = False
    tied_embeddings: bool = True
    #: One letter per layer, repeated over the depth: g (global) attends to all earlier tokens, l (local) to the last
    #: `window`, n (no positions) to all earlier tokens without RoPE (SmolLM3, Cohere 2).
    layer_pattern: str = "g"
    #: Tokens that a query of a local layer attends to, itself included.
    window: int = 0
    #: RoPE base of local layers, which are then not scaled (Gemma 3); 0: RoPE is the same in all layers.
    local_rope_theta: float = 0.0
    #: Of the feed-forward's gate: silu or gelu_tanh. xielu has two parameters per layer and no gate (Apertus).
    activation: str = "silu"
    #: Norms after attention and feed-forward as well as before (Gemma 3).
    sandwich_norms: bool = False
    #: Norms before attention and feed-forward; without, those after them alone (OLMo 2).
    pre_norms: bool = True
    #: Attention and feed-forward read the same normed input, and their sum is added (Cohere).
    parallel: bool = False
    #: Norms subtract the mean first: LayerNorm without a bias (Cohere).
    centered_norms: bool = False
    #: Norms multiply by 1 + scale (Gemma 3).
    norm_offset: bool = False
    #: Embeddings are multiplied by the square root of the width (Gemma 3).
    scaled_embeddings: bool = False
    #: Attention scores are divided by its square root; None: by that of head_dim.
    query_scalar: float | None = None
    #: Attention scores s become c tanh(s / c) (Gemma 2); 0: they stay.
    attention_softcap: float = 0.0
    #: The same of logits (Gemma 2).
    logit_softcap: float = 0.0
    #: Factor of logits (Cohere).
    logit_scale: float = 1.0
    #: Experts per layer (Qwen3-MoE); 0: one feed-forward and no router.
    experts: int = 0
    experts_per_token: int = 0
    #: The weights of the chosen experts sum to one.
    normalized_experts: bool = True
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    #: While decoding: matrices are tensor-parallel over the mesh's fsdp axis too, and the rows of the devices along it
    #: are gathered for every product (see rollout.weights).
    gathered_rows: bool = False
    #: While decoding: model (`dtype`) or int8, of the kernels and of the cached keys and values (models.int8).
    weight_dtype: str = "model"
    kv_dtype: str = "model"
    #: Attention of single tokens to a cache of slots: auto, portable or pallas (models.decode_attention).
    decode_attention: str = "auto"

    def layer_letters(self) -> str:
        """The letter of `layer_pattern` of each layer."""
        return "".join(self.layer_pattern[layer % len(self.layer_pattern)] for layer in range(self.layers))

    def local_layers(self) -> tuple[bool, ...]:
        """Whether each layer is local."""
        return tuple(letter == "l" for letter in self.layer_letters())

    @property
    def gated(self) -> bool:
        """Whether the feed-forward has a gate."""
        return self.activation != "xielu"


@dataclass(frozen=True)
class DenseSpec:
    """A linear map of the pooled vector and its activation (a Dense module of sentence-transformers)."""

    width: int
    #: A name in pbrl_jax.models.pooling.ACTIVATIONS.
    activation: str = "identity"
    bias: bool = True


@dataclass(frozen=True)
class EncoderSpec:
    """A bidirectional transformer of the BERT form: learned positions or RoPE, exact GELU, pooling."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    ffn: int
    max_positions: int
    #: 0 for BERT; 2 for XLM-R, whose first real token has position 2.
    position_offset: int = 0
    type_vocab: int = 1
    norm_eps: float = 1e-12
    #: Norms before attention and feed-forward and after the last layer (XLM-R-XL), and not after each.
    pre_norm: bool = False
    #: Base of RoPE (gte); 0: positions are learned.
    rope_theta: float = 0.0
    #: Divisor of RoPE's frequencies.
    rope_factor: float = 1.0
    #: The feed-forward has a gate (gte).
    gated: bool = False
    #: mean, cls or last: see pbrl_jax.models.pooling.
    pooling: str = "mean"
    #: Width of a linear map after pooling; 0 is none.
    projection: int = 0
    #: Further maps, in their order.
    dense: tuple[DenseSpec, ...] = ()
    #: Special tokens that the encoder puts before every text ([CLS], <s>).
    begin_ids: tuple[int, ...] = ()
    #: Special tokens after every text ([SEP], </s>).
    end_ids: tuple[int, ...] = ()
    attention: str = "auto"
    dtype: str = "float32"

    @property
    def text_tokens(self) -> int:
        """Tokens of text that the positions hold, beside the special ones."""
        return self.max_positions - self.position_offset - len(self.begin_ids) - len(self.end_ids)

    @property
    def embedding_width(self) -> int:
        """E, the width of a text's vector."""
        return self.dense[-1].width if self.dense else self.projection or self.width


@dataclass(frozen=True)
class DecoderEncoderSpec:
    """A decoder that embeds texts: its last hidden states are pooled (Qwen3-Embedding, Harrier, EmbeddingGemma)."""

    decoder: DecoderSpec
    max_positions: int
    #: Tokens attend to later ones too; a local layer's window extends as far ahead as back (EmbeddingGemma).
    bidirectional: bool = False
    pooling: str = "last"
    dense: tuple[DenseSpec, ...] = ()
    begin_ids: tuple[int, ...] = ()
    #: With pooling of the last token, the token whose state is the text's.
    end_ids: tuple[int, ...] = ()

    @property
    def text_tokens(self) -> int:
        """Tokens of text that the positions hold, beside the special ones."""
        return self.max_positions - len(self.begin_ids) - len(self.end_ids)

    @property
    def embedding_width(self) -> int:
        """E, the width of a text's vector."""
        return self.dense[-1].width if self.dense else self.decoder.width

    @property
    def dtype(self) -> str:
        """Compute type."""
        return self.decoder.dtype


#: Every model that turns texts into vectors.
TextEncoderSpec = EncoderSpec | DecoderEncoderSpec


def tiny_decoder(**changes) -> DecoderSpec:
    """A very small decoder for tests and experiments (0.05 M parameters with a vocabulary of 256)."""
    base = DecoderSpec(
        vocab_size=256, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=64, qk_norm=True, rope_theta=1e4
    )
    return dataclasses.replace(base, **changes)


def tiny_encoder(**changes) -> EncoderSpec:
    """A very small encoder for tests and experiments."""
    base = EncoderSpec(vocab_size=256, width=32, layers=1, heads=4, ffn=64, max_positions=128, projection=16)
    return dataclasses.replace(base, **changes)


def _llama(**sizes) -> DecoderSpec:
    return DecoderSpec(rope_theta=500_000.0, norm_eps=1e-5, **{"vocab_size": 128_256, "kv_heads": 8, **sizes})


def _qwen3(**sizes) -> DecoderSpec:
    base = {"vocab_size": 151_936, "kv_heads": 8, "head_dim": 128, "rope_theta": 1_000_000.0, "qk_norm": True}
    return DecoderSpec(**{**base, **sizes})


#: The smallest decoder of each family.
TINY_FAMILIES = {
    "tiny_llama": tiny_decoder(qk_norm=False, rope_scaling=Llama3Scaling(original_max_position=16)),
    "tiny_qwen2": tiny_decoder(qk_norm=False, qkv_bias=True),
    "tiny_qwen3": tiny_decoder(tied_embeddings=False),
    "tiny_qwen3_moe": tiny_decoder(ffn=16, experts=4, experts_per_token=2, tied_embeddings=False),
    "tiny_mistral": tiny_decoder(qk_norm=False, layer_pattern="l", window=4, tied_embeddings=False),
    "tiny_gemma3": tiny_decoder(
        layers=4, layer_pattern="llg", window=4, rope_theta=1e6, rope_factor=8.0, local_rope_theta=1e4,
        activation="gelu_tanh", sandwich_norms=True, norm_offset=True, scaled_embeddings=True, query_scalar=12,
    ),
}  # fmt: skip

#: Random policies by name; the vocabulary size is that of the run's tokenizer.
DECODERS = {
    "tiny": tiny_decoder(),
    **TINY_FAMILIES,
    "quickstart": DecoderSpec(
        vocab_size=2000, width=128, layers=4, heads=4, kv_heads=4, head_dim=32, ffn=384, qk_norm=True
    ),
    "small": DecoderSpec(
        vocab_size=8192, width=256, layers=4, heads=8, kv_heads=4, head_dim=32, ffn=1024, qk_norm=True
    ),
    "llama32_1b": _llama(
        width=2048, layers=16, heads=32, head_dim=64, ffn=8192, rope_scaling=Llama3Scaling(factor=32.0)
    ),
    "llama31_8b": _llama(
        width=4096, layers=32, heads=32, head_dim=128, ffn=14_336, rope_scaling=Llama3Scaling(), tied_embeddings=False
    ),
    "qwen3_0_6b": _qwen3(width=1024, layers=28, heads=16, ffn=3072),
    "qwen3_4b": _qwen3(width=2560, layers=36, heads=32, ffn=9728),
    "qwen3_8b": _qwen3(width=4096, layers=36, heads=32, ffn=12_288, tied_embeddings=False),
    "qwen3_32b": _qwen3(width=5120, layers=64, heads=64, ffn=25_600, tied_embeddings=False),
}

#: Random encoders by name.
ENCODERS = {
    "tiny": tiny_encoder(),
    "quickstart": EncoderSpec(
        vocab_size=2000, width=128, layers=2, heads=4, ffn=512, max_positions=128, projection=128
    ),
    "small": EncoderSpec(vocab_size=8192, width=256, layers=4, heads=8, ffn=1024, max_positions=512, projection=256),
}
