"""The first prompt of each language as the policy reads it, its gold answer, and what ends a response."""

from collections.abc import Sequence
from typing import Any

from pbrl_jax.core.errors import DataError
from pbrl_jax.core.records import Prompt
from pbrl_jax.text.prompts import chat_messages, rendered, resolve_style
from pbrl_jax.text.tokenizers import Tokenizer

SHOWN_CHARACTERS = 600


def first_prompts(
    prompts: Sequence[Prompt], ids: Sequence[Sequence[int]], tokenizer: Tokenizer, form: dict[str, Any]
) -> list[str]:
    """Lines that show the first prompt of each language, and one with the ids that end a response.

    Args:
      prompts: at least one.
      ids: of each prompt, as `format_prompts` makes them.
      form: style, thinking and wording, as in format_prompts.

    Raises:
      DataError: a prompt without its question, or without a system turn that it should have.
    """
    lines, style = [], resolve_style(form["style"], tokenizer)
    first = {prompt.language: (prompt, tokens) for prompt, tokens in reversed(list(zip(prompts, ids, strict=True)))}
    for prompt, tokens in (first[code] for code in dict.fromkeys(prompt.language for prompt in prompts)):
        text = rendered(tokens, tokenizer)
        wanted = [("user", prompt.question)]
        if style.startswith("chat"):
            messages = chat_messages(prompt.asked, prompt.language, style, form["wording"])
            wanted += [(turn["role"], turn["content"]) for turn in messages if turn["role"] == "system"]
        for role, content in wanted:
            if _bare(tokenizer.decode(tokenizer.encode(content))) not in _bare(tokenizer.decode(tokens)):
                raise DataError(
                    f"The prompts of {prompt.language!r} lack the {role}'s turn {content[:60]!r}; the policy reads "
                    f"{text[:300]!r}. Its chat template leaves it out: choose another data.prompt_style."
                )
        gold = "" if prompt.answer is None else f", gold answer {prompt.answer!r}"
        cut = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ..."
        lines.append(f"First prompt in {prompt.language} ({len(tokens)} tokens{gold}): {cut!r}")
    pieces = ", ".join(f"{i} {_piece(i, tokenizer)!r}" for i in tokenizer.eos_ids)
    return [*lines, f"A response ends at: {pieces}."]


def _bare(text: str) -> str:
    return "".join(text.split())


def _piece(token: int, tokenizer: Tokenizer) -> str:
    inner: Any = getattr(tokenizer, "tokenizer", None) or getattr(tokenizer, "processor", None)
    name = getattr(inner, "convert_ids_to_tokens", None) or getattr(inner, "id_to_piece", None)
    return str(name(token)) if name else ""
