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
    """A decoder-only transformer: RMSNorm, RoPE, grouped-query attention, gated SiLU feed-forward."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Scaling | None = None
    norm_eps: float = 1e-6
    qk_norm: bool = False
    """RMSNorm of each query and key head before RoPE (Qwen3)."""
    qkv_bias: bool = False
    """Bias on query, key and value projections (Qwen2)."""
    tied_embeddings: bool = True
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"


@dataclass(frozen=True)
class EncoderSpec:
    """A bidirectional transformer of the BERT form: post-norm, learned positions, exact GELU."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    ffn: int
    max_positions: int
    position_offset: int = 0
    """0 for BERT; 2 for XLM-R, whose first real token has position 2."""
    type_vocab: int = 1
    norm_eps: float = 1e-12
    pooling: str = "mean"
    """mean, cls or last: see pbrl_jax.models.pooling."""
    projection: int = 0
    """Width of a linear map after pooling; 0 is none."""
    dtype: str = "float32"


def tiny_decoder(**changes) -> DecoderSpec:
    """The smallest useful decoder, for tests and tinkering (0.05 M parameters at 256 tokens of vocabulary)."""
    base = DecoderSpec(
        vocab_size=256, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=64, qk_norm=True, rope_theta=1e4
    )
    return dataclasses.replace(base, **changes)


def tiny_encoder(**changes) -> EncoderSpec:
    """The smallest useful encoder, for tests and tinkering."""
    base = EncoderSpec(vocab_size=256, width=32, layers=1, heads=4, ffn=64, max_positions=128, projection=16)
    return dataclasses.replace(base, **changes)


#: Random policies by name; the vocabulary size is that of the run's tokenizer.
DECODERS = {
    "tiny": tiny_decoder(),
    "quickstart": DecoderSpec(
        vocab_size=2000, width=128, layers=4, heads=4, kv_heads=4, head_dim=32, ffn=384, qk_norm=True
    ),
    "small": DecoderSpec(
        vocab_size=8192, width=256, layers=4, heads=8, kv_heads=4, head_dim=32, ffn=1024, qk_norm=True
    ),
    "llama31_8b": DecoderSpec(
        vocab_size=128_256, width=4096, layers=32, heads=32, kv_heads=8, head_dim=128, ffn=14_336,
        rope_theta=500_000.0, rope_scaling=Llama3Scaling(), norm_eps=1e-5, tied_embeddings=False,
    ),
    "qwen3_32b": DecoderSpec(
        vocab_size=151_936, width=5120, layers=64, heads=64, kv_heads=8, head_dim=128, ffn=25_600,
        rope_theta=1_000_000.0, qk_norm=True, tied_embeddings=False,
    ),
}  # fmt: skip

#: Random encoders by name.
ENCODERS = {
    "tiny": tiny_encoder(),
    "quickstart": EncoderSpec(
        vocab_size=2000, width=128, layers=2, heads=4, ffn=512, max_positions=128, projection=128
    ),
    "small": EncoderSpec(vocab_size=8192, width=256, layers=4, heads=8, ffn=1024, max_positions=512, projection=256),
}
