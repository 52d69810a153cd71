"""Settings of the training prompts; `config.tree` holds the whole tree."""

from dataclasses import dataclass
from typing import Literal

from pbrl_jax.config.fields import identity, operational


@dataclass(frozen=True)
class DataConfig:
    """The training prompts."""

    source: str = identity("quickstart")
    """Data source: a name in pbrl_jax.data.sources.SOURCES."""
    path: str = operational("")
    """File, folder or hub id; empty: for a known benchmark, the folder PBRL_DATA."""
    split: str = identity("train")
    """Split of the data source."""
    languages: tuple[str, ...] = identity(("en", "es", "de", "sw", "id", "zh", "th", "bn"))
    """Languages the policy is trained in."""
    columns: tuple[str, ...] = identity(())
    """For table sources: `field=column` pairs, e.g. question=prompt answer=label language=lang."""
    limit: int = identity(0, at_least=0)
    """Rows per language; 0: all."""
    english_share: float = identity(0.125, at_least=0, at_most=1)
    """Share of English prompts in each batch, against forgetting."""  # ASSUMED: not stated
    overlong_prompts: Literal["error", "drop"] = identity("error")
    """What happens to prompts longer than rollout.max_prompt_length: error or drop."""
    language_weights: tuple[str, ...] = identity(())
    """`language=weight` pairs: factors on the shares of languages; 1 for a language that is not listed."""
    language_temperature: float = identity(1.0, at_least=1e-06)
    """Shares of languages are proportional to rows^(1 / temperature); larger values make them more even."""
    prompt_style: str = identity("plain")
    """Instructions and chat template around a question: a name in pbrl_jax.text.prompts.STYLES."""
    thinking: Literal["default", "on", "off"] = identity("default")
    """The thinking switch of chat templates that have one (Qwen3): on, off (an empty thought), or the default."""
    system_prompt: str = identity("")
    """Your own system turn; replaces all instructions of the style. {language} is the name of a prompt's language."""
    user_prompt: str = identity("")
    """Your own user turn (in the styles plain and base: the whole prompt); replaces all instructions of the style and
    contains {question}, such as "{question}\nAnswer in {language}."."""
    prompt_file: str = operational("")
    """File with system and user turns: YAML or JSON {system: ..., user: ...}, each a text or {language: text}; or a
    text file with the user turn. Its content is part of the data's fingerprint."""
    vocab_size: int = identity(2000, at_least=1)
    """Size of the SentencePiece vocabulary if it is trained on the run's own text."""
