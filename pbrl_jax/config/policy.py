"""Settings of the policy; `config.tree` holds the whole tree."""

from dataclasses import dataclass
from typing import Literal

from pbrl_jax.config.fields import identity, operational


@dataclass(frozen=True)
class PolicyConfig:
    """The policy that is trained."""

    source: str = identity("random")
    """`random` (a new model of `preset`), a hub id such as Qwen/Qwen3-0.6B (or owner/name@revision; HF_TOKEN for gated
    models), gs://..., or a folder: a Hugging Face model, an exported policy, a finished work directory, or a LoRA
    adapter of PEFT, which is merged into its base."""
    preset: str = identity("tiny", only_with=("source", "random"))
    """Architecture of a random policy: a name in pbrl_jax.models.specs.DECODERS."""
    tokenizer: str = identity("")
    """Tokenizer of a random policy: SentencePiece file, tokenizer folder or hub id; empty: train SentencePiece on the
    run's own text."""
    dtype: Literal["float32", "bfloat16"] = identity("float32")
    """Compute type: float32 or bfloat16. Parameters and optimizer state stay float32."""
    remat: Literal["none", "full", "dots"] = operational("dots")
    """What a layer recomputes in the backward pass: none, full, or dots (all but matrix products; the fastest on CPU,
    where storing activations costs more than recomputing them)."""
    attention: str = operational("auto")
    """Attention kernel: auto (the hardware's flash kernel where one takes the arrays, portable elsewhere), or a name in
    pbrl_jax.models.attention.KERNELS."""
    decode_attention: Literal["auto", "portable", "pallas"] = operational("auto")
    """Attention of sampled tokens to what their rows have written: auto (the kernel of a TPU where it takes the arrays,
    portable elsewhere), portable, or pallas (the kernel of the platform; that for GPUs has not run on one yet)."""
