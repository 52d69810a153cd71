"""Settings of the reward's encoder; `config.tree` holds the whole tree."""

from dataclasses import dataclass
from typing import Literal

from pbrl_jax.config.fields import identity


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder of the semantic reward."""

    source: str = identity("random")
    """`random`, or the folder of an encoder (written by `pbrl encoder`)."""
    preset: str = identity("tiny", only_with=("source", "random"))
    """Size of a new encoder: a name in pbrl_jax.models.specs.ENCODERS."""
    max_length: int = identity(64, at_least=1)
    """Tokens the encoder reads at a time; the number of its positions counts special tokens, as in
    sentence-transformers (512 is 510 of text). Longer texts are read in chunks and their vectors pooled by length. The
    share of such responses is logged (encoder_cut)."""
    dtype: Literal["", "float32", "bfloat16"] = identity("")
    """Compute type, float32 or bfloat16; the weights of a released encoder are held in it too. Empty: float32, or what
    the folder says."""
    pooling: Literal["", "mean", "cls", "last"] = identity("")
    """How token states become a vector, for a folder that does not say it (one without modules.json) or a new encoder:
    mean, cls (the first token) or last. Empty: as the folder says."""
    prefix: str = identity("")
    """Text put before every input, on both sides (`query: ` for E5); empty: the default of the encoder's folder."""
