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
    """Tokens of a text that the encoder reads at a time. The encoder's number of positions may be given too; it counts
    special tokens, as in sentence-transformers (512 is 510 of text). Longer texts are encoded in chunks whose vectors
    are averaged by length; the share of such responses is logged (encoder_cut)."""
    dtype: Literal["", "float32", "bfloat16"] = identity("")
    """Compute type, float32 or bfloat16, also of a released encoder's weights. Empty: float32, or the type given in the
    encoder's folder."""
    pooling: Literal["", "mean", "cls", "last"] = identity("")
    """Pooling of token states, for a new encoder or a folder without modules.json: mean, cls (the first token) or last.
    Empty: as given in the folder."""
    prefix: str = identity("")
    """Text before every input, of references and responses (`query: ` for E5); empty: the folder's default."""
