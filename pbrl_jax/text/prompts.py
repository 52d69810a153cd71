"""Prompts: from a question to token ids.

A prompt begins with exactly one beginning-of-sequence token if the tokenizer has one in use, with or without a chat
template. The wording is our own; no native speaker has reviewed it.
"""

import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Any

from pbrl_jax.config.data import DataConfig
from pbrl_jax.core.errors import ConfigError, lookup
from pbrl_jax.core.records import Question
from pbrl_jax.text.languages import LANGUAGES, answer_sentence, language
from pbrl_jax.text.tokenizers import Tokenizer, has_chat_template
from pbrl_jax.text.wording import OURS, Wording, wording_of

STYLES = {
    "plain": "the question and a newline: small models trained in this form",
    "base": "Question: ... Step-by-Step Answer: in the prompt's language: pretrained models without a chat template",
    "chat_question": "the question alone, through the tokenizer's chat template",
    "chat": "an instruction in the prompt's language and the question, through the tokenizer's chat template",
    "chat_boxed": "as chat, with a system instruction: reason, then the answer in \\boxed{} (Qwen's and Llama's form)",
    "chat_tags": "as chat, with a system instruction: <think>reasoning</think><answer>answer</answer>",
    "auto": "chat where the tokenizer has a chat template, else plain",
}

THINKING = {"default": None, "on": True, "off": False}
"""Value of `data.thinking` or `--thinking` -> argument `thinking`."""

_TURNS = (("user", "a"), ("assistant", "b"), ("user", "a"))
"""A conversation that shows what a template writes behind an assistant's turn."""

_INSTRUCTION = "Solve the following problem step by step in {name}. End with “{{phrase}}”"
_LEAD = "Solve the problem step by step. Write both the reasoning and the answer in {name}."
"""The English instructions for a language without its own."""


def instruction(code: str) -> str:
    """The instruction of style `chat` in language `code`, with N in its answer sentence."""
    entry = language(code)
    text = entry.instruction or _INSTRUCTION.format(name=entry.name)
    return text.format(phrase=answer_sentence("N", code))


def system_instruction(code: str, style: str) -> str:
    r"""The system message of style `chat_boxed` or `chat_tags` in language `code`: solve step by step in the language;
    where the answer goes. `\boxed{}`, `<think>` and `<answer>` are not translated, as the answer is extracted by them.
    """
    entry, english = language(code), LANGUAGES["en"]
    form = (entry.boxed or english.boxed) if style == "chat_boxed" else (entry.tags or english.tags)
    return f"{entry.lead or _LEAD.format(name=entry.name)} {form}"


def form_of(data: DataConfig) -> dict[str, Any]:
    """The form of a run's prompts: the arguments `style`, `thinking` and `wording` of `format_prompts`.

    Raises:
      ConfigError: texts of the user that cannot be used (see pbrl_jax.text.wording).
    """
    return {"style": data.prompt_style, "thinking": THINKING[data.thinking], "wording": wording_of(data)}


def as_messages(turns: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Turns in the form of chat templates."""
    return [{"role": role, "content": content} for role, content in turns]


def chat_messages(question: Question, code: str, style: str = "chat", wording: Wording = OURS) -> list[dict[str, str]]:
    """The turns before the answer.

    A `wording` with texts for the language takes precedence: its user turn replaces the last question, its system turn
    that of a conversation. Conversations have no texts of the style. Style `chat_question`: the question. Style `chat`:
    a user turn with the instruction in the question's language, an empty line, and the question. The other chat styles:
    a system turn that says where reasoning and answer go, and a user turn with the question.
    """
    *before, (_, text) = [("user", question)] if isinstance(question, str) else question
    if (turns := wording.turns(text, code)) is not None:
        system, user = turns
    elif style == "chat_question" or not isinstance(question, str):
        system, user = "", text
    elif style == "chat":
        system, user = "", f"{instruction(code)}\n\n{text}"
    else:
        system, user = system_instruction(code, style), text
    if system:
        before = [("system", system), *(turn for turn in before if turn[0] != "system")]
    return as_messages([*before, ("user", user)])


def resolve_style(style: str, tokenizer: Tokenizer) -> str:
    """`style`; `auto` is resolved by whether the tokenizer has a chat template.

    Raises:
      ConfigError: unknown style.
    """
    lookup(STYLES, style, "prompt style")
    if style != "auto":
        return style
    return "chat" if has_chat_template(tokenizer) else "plain"


def prompt_text(question: Question, code: str, style: str, wording: Wording = OURS) -> str:
    """The text of a prompt in style `plain` or `base`, or of `wording`.

    Raises:
      ConfigError: a conversation of several turns, or a system turn.
    """
    entry = language(code)
    if not isinstance(question, str):
        if len(question) > 1:
            raise ConfigError(
                f"The data hold conversations, and style {style} has no turns. Use --data.prompt-style chat_question."
            )
        question = question[-1][1]
    if (turns := wording.turns(question, code)) is not None:
        if turns[0]:
            raise ConfigError(
                f"A system prompt needs a chat, and this is style {style}. Use --style chat, or the user's turn."
            )
        return turns[1]
    if style == "plain":
        return f"{question}\n"
    ask, answer = entry.ask
    return f"{ask} {question}\n{answer}"


def format_prompts(
    questions: Sequence[Question], codes: Sequence[str], tokenizer: Tokenizer, style: str = "plain",
    thinking: bool | None = None, wording: Wording = OURS,
) -> list[list[int]]:  # fmt: skip
    """The ids of prompts, each with exactly one beginning-of-sequence token if the tokenizer has one.

    Args:
      questions: texts; codes: the language of each.
      style: a key of STYLES.
      thinking: the switch of chat templates that have one (Qwen3): False writes an empty thought, so that the policy
        answers without one; None is the template's default.
      wording: the user's own texts, instead of those of the style.

    Raises:
      ConfigError: unknown style or language, or a chat style without a chat template.
    """
    style = resolve_style(style, tokenizer)
    pairs = list(zip(questions, codes, strict=True))
    if style.startswith("chat"):
        messages = [chat_messages(question, code, style, wording) for question, code in pairs]
        encoded = [tokenizer.encode_chat(turns, thinking) for turns in messages]
    else:
        encoded = tokenizer.encode_batch([prompt_text(question, code, style, wording) for question, code in pairs])
    return [with_one_bos(ids, tokenizer.bos_id) for ids in encoded]


def response_end(tokenizer: Tokenizer, style: str) -> list[int]:
    """The token behind a response that is trained on: in a chat the one that the template writes behind an assistant's
    turn, where it is a stop token (Gemma's `<end_of_turn>`), else the end of sequence; [] without one."""
    ends = list(tokenizer.eos_ids[:1])
    if not resolve_style(style, tokenizer).startswith("chat"):
        return ends
    try:
        asked, told = (tokenizer.encode_chat(as_messages(turns)) for turns in (_TURNS[:1], _TURNS))
    except ConfigError:  # a template that takes one turn only
        return ends
    behind = told[len(os.path.commonprefix([asked, told])) :]
    return next(([i] for i in behind if i in tokenizer.eos_ids), ends)


def rendered(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of a prompt, with special tokens if it comes from a chat template."""
    return tokenizer.tokenizer.decode(list(ids)) if has_chat_template(tokenizer) else tokenizer.decode(ids)


def with_one_bos(ids: Sequence[int], bos_id: int | None) -> list[int]:
    """`ids` with exactly one beginning-of-sequence token in front; unchanged if the tokenizer has none."""
    if bos_id is None:
        return list(ids)
    return [bos_id, *itertools.dropwhile(lambda i: i == bos_id, ids)]
