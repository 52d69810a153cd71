"""From a question to the ids a policy continues: one place for templates, one rule for the first token.

Exactly one beginning-of-sequence token opens a prompt where the tokenizer has one, whether a chat template writes it
or this module does. The wording is our own; no native speaker has reviewed it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

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
"""Values of the thinking switch, `data.thinking` and `--thinking`, -> argument `thinking`."""

QUESTION_WORDS = {code: entry.ask for code, entry in LANGUAGES.items()}
"""What stands before a question and before its solution; for the MGSM languages, MGSM's words."""
_ASK = "Solve the following problem step by step in {name}. End with “{{phrase}}”"
INSTRUCTIONS = {code: entry.instruction or _ASK.format(name=entry.name) for code, entry in LANGUAGES.items()}
"""What a chat policy is asked to do; {phrase} is the language's answer sentence with N for the answer."""
_LEAD = "Solve the problem step by step. Write both the reasoning and the answer in {name}."


class Instruction(NamedTuple):
    """The parts of a system message. `\\boxed{}`, `<think>` and `<answer>` are never translated: they are what the
    answer is found by."""

    lead: str
    """Solve step by step, in this language."""
    boxed: str
    """The final answer goes into `\\boxed{}`."""
    tags: str
    """The reasoning goes between `<think>` tags, the final answer alone between `<answer>` tags."""


SYSTEM = {
    code: Instruction(
        entry.lead or _LEAD.format(name=entry.name),
        entry.boxed or LANGUAGES["en"].boxed,
        entry.tags or LANGUAGES["en"].tags,
    )
    for code, entry in LANGUAGES.items()
}


def instruction(code: str) -> str:
    """The instruction in language `code`, its answer sentence filled in with N."""
    language(code)
    return INSTRUCTIONS[code].format(phrase=answer_sentence("N", code))


def system_instruction(code: str, style: str) -> str:
    """The system message of style `chat_boxed` or `chat_tags` in language `code`."""
    language(code)
    parts = SYSTEM[code]
    return f"{parts.lead} {parts.boxed if style == 'chat_boxed' else parts.tags}"


def form_of(data: DataConfig) -> dict[str, Any]:
    """How a run puts questions: the arguments `style`, `thinking` and `wording` of `format_prompts`.

    Raises:
      ConfigError: words of the user's that cannot be used (see pbrl_jax.text.wording).
    """
    return {"style": data.prompt_style, "thinking": THINKING[data.thinking], "wording": wording_of(data)}


def as_messages(turns: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Turns in the form of chat templates."""
    return [{"role": role, "content": content} for role, content in turns]


def chat_messages(question: Question, code: str, style: str = "chat", wording: Wording = OURS) -> list[dict[str, str]]:
    """The turns before the answer.

    The user's own words come first: the user's turn around the last question, the system's in place of a
    conversation's own. A conversation has no words of the style. Style `chat_question`: the question. Style `chat`: one
    user turn of the instruction in the question's language, an empty line, and the question. The other chat styles: a
    system turn that says where reasoning and answer go, and the question alone. Reasoning and answer are then told
    apart by `pbrl_jax.text.answers`.
    """
    *before, (_, text) = [("user", question)] if isinstance(question, str) else question
    if (own := wording.turns(text, code)) is not None:
        system, user = own
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
    """`style`, with `auto` decided by the tokenizer.

    Raises:
      ConfigError: unknown style.
    """
    lookup(STYLES, style, "prompt style")
    if style != "auto":
        return style
    return "chat" if has_chat_template(tokenizer) else "plain"


def prompt_text(question: Question, code: str, style: str, wording: Wording = OURS) -> str:
    """The text of a prompt in style `plain` or `base`, or the user's own.

    Raises:
      ConfigError: a conversation of several turns, or a system turn.
    """
    language(code)
    if not isinstance(question, str):
        if len(question) > 1:
            raise ConfigError(
                f"The data hold conversations, and style {style} has no turns. Use --data.prompt-style chat_question."
            )
        question = question[-1][1]
    if (own := wording.turns(question, code)) is not None:
        if own[0]:
            raise ConfigError(
                f"A system prompt needs a chat, and this is style {style}. Use --style chat, or the user's turn."
            )
        return own[1]
    if style == "plain":
        return f"{question}\n"
    ask, answer = QUESTION_WORDS[code]
    return f"{ask} {question}\n{answer}"


def format_prompt(
    question: Question, code: str, tokenizer: Tokenizer, style: str = "plain", thinking: bool | None = None,
    wording: Wording = OURS,
) -> list[int]:  # fmt: skip
    """The ids of one prompt, with exactly one beginning-of-sequence token where the tokenizer has one.

    Args:
      thinking: the switch of chat templates that have one (Qwen3): False writes an empty thought, so that the policy
        answers at once; None is the template's own default.
      wording: the user's own words, in place of the style's.

    Raises:
      ConfigError: unknown style or language, or a chat style without a chat template.
    """
    return format_prompts([question], [code], tokenizer, style, thinking, wording)[0]


def format_prompts(
    questions: Sequence[Question], codes: Sequence[str], tokenizer: Tokenizer, style: str = "plain",
    thinking: bool | None = None, wording: Wording = OURS,
) -> list[list[int]]:  # fmt: skip
    """`format_prompt` of many questions, encoded together."""
    style = resolve_style(style, tokenizer)
    pairs = list(zip(questions, codes, strict=True))
    if style.startswith("chat"):
        messages = [chat_messages(question, code, style, wording) for question, code in pairs]
        encoded = [tokenizer.encode_chat(turns, thinking) for turns in messages]
    else:
        encoded = tokenizer.encode_batch([prompt_text(question, code, style, wording) for question, code in pairs])
    return [with_one_bos(ids, tokenizer.bos_id) for ids in encoded]


def rendered(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """A prompt as the policy reads it, special tokens included where it comes from a chat template."""
    return tokenizer.tokenizer.decode(list(ids)) if has_chat_template(tokenizer) else tokenizer.decode(ids)


def with_one_bos(ids: Sequence[int], bos_id: int | None) -> list[int]:
    """`ids` with exactly one beginning-of-sequence token in front, where the tokenizer has one."""
    if bos_id is None:
        return list(ids)
    rest = 0
    while rest < len(ids) and ids[rest] == bos_id:
        rest += 1
    return [bos_id, *ids[rest:]]
