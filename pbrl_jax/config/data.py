"""Settings of the training prompts; `config.tree` holds the whole tree."""

from dataclasses import dataclass
from typing import Literal

from pbrl_jax.config.fields import identity, operational


@dataclass(frozen=True)
class DataConfig:
    """The prompts of the training."""

    source: str = identity("quickstart")
    """A name in pbrl_jax.data.sources.SOURCES."""
    path: str = operational("")
    """File, folder or hub id; empty: the folder PBRL_DATA where the source is a known benchmark."""
    split: str = identity("train")
    """Split of the source."""
    languages: tuple[str, ...] = identity(("en", "es", "de", "sw", "id", "zh", "th", "bn"))
    """Languages the policy is trained in."""
    columns: tuple[str, ...] = identity(())
    """For table sources: `field=column` pairs, e.g. question=prompt answer=label language=lang."""
    limit: int = identity(0, at_least=0)
    """Rows per language; 0: all."""
    english_share: float = identity(0.125, at_least=0, at_most=1)
    """Share of each batch that is English, replayed against forgetting."""  # ASSUMED: not stated
    overlong_prompts: Literal["error", "drop"] = identity("error")
    """error or drop: what happens to prompts longer than rollout.max_prompt_length."""
    language_weights: tuple[str, ...] = identity(())
    """`language=weight` pairs: how often a language is drawn, as a factor on its share; 1 where not named."""
    language_temperature: float = identity(1.0, at_least=1e-06)
    """Shares of languages are (rows)^(1 / temperature): 1 is as they come, larger ones are more even."""
    prompt_style: str = identity("plain")
    """Words and chat template around a question: a name that pbrl_jax.text.prompts knows."""
    thinking: Literal["default", "on", "off"] = identity("default")
    """The switch of chat templates that have one (Qwen3): on, off (an empty thought), or the template's default."""
    system_prompt: str = identity("")
    """Your own system turn, in place of all of the style's words; {language} is the name of a prompt's language."""
    user_prompt: str = identity("")
    """Your own user's turn (or whole prompt in the styles plain and base), in place of all of the style's words, with
    {question} in it, such as "{question}\nAnswer in {language}."."""
    prompt_file: str = operational("")
    """Both of them per language: YAML or JSON {system: ..., user: ...}, each a text or {language: text}; or the user's
    turn as a text file. Its content is part of the data's fingerprint."""
    vocab_size: int = identity(2000, at_least=1)
    """Pieces of a SentencePiece vocabulary trained on the run's own text."""
