"""One prompt, and the share of a text in the scripts of a language."""

from pbrl_jax.text.languages import language, letters_of, script_pattern
from pbrl_jax.text.prompts import format_prompts


def format_prompt(question: str, code: str, *form, **options) -> list[int]:
    """The ids of one prompt; arguments as for format_prompts."""
    return format_prompts([question], [code], *form, **options)[0]


def script_share(text: str, code: str) -> float | None:
    """Share in [0, 1] of the letters of `text` written in a script of language `code`; None without any letter."""
    letters = letters_of(text)
    if not letters:
        return None
    return len(script_pattern(language(code).scripts).findall(letters)) / len(letters)
