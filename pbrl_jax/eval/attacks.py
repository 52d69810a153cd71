"""Attacks: replies, made from a faithful reply, that a reward must score below it.

Every attack has two templates. The seen template may be used for hard negatives of an encoder. Nothing may be trained
on the held-out template, so that the audit measures generalisation.
"""

import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pbrl_jax.core.errors import DataError
from pbrl_jax.core.records import Prompt
from pbrl_jax.data.contrastive import change_numbers
from pbrl_jax.eval.attack_text import PHRASES, Phrases
from pbrl_jax.eval.wrapping import WRAPPINGS, Wrapping
from pbrl_jax.rewards.alignment import chunks_of
from pbrl_jax.text.answers import split_response
from pbrl_jax.text.languages import LANGUAGES, answer_sentence

_EQUATION = re.compile(r"\d[\d.,]*(?:\s*[-+*/×÷−]\s*\d[\d.,]*)+\s*=\s*\d+")
_SIGNS = re.compile(r"[-+(]?\d[\d\s.,:/+*\u00d7\u00f7\u2212=()%-]*")
_NUMBER = re.compile(r"\d(?:[\d.,/]*\d)?")


class Case(NamedTuple):
    """One problem in one language, with the texts from which attacks are made.

    `faithful` is a correct reply in the prompt's language, `others` are correct replies to the same problem in two
    further languages other than English (empty if there are none), and `neighbours` are faithful replies to two other
    problems in the prompt's language, the most similar problem first. `held_out` marks problems that have no hard
    negatives.
    """

    prompt: Prompt
    faithful: str
    english: str
    others: tuple[str, ...]
    neighbours: tuple[str, ...]
    held_out: bool = False

    @property
    def phrases(self) -> Phrases:
        """Sentences to insert; for a language without them, signs of denial and sentences of other replies."""
        if phrases := PHRASES.get(self.prompt.language):
            return phrases
        filler = [(steps_of(text) or [text])[0] for text in reversed(self.neighbours)]
        return Phrases("\u2260 {answer}", "\u2717", (filler[0], filler[1]), (filler[1], filler[0]))

    @property
    def parts(self) -> tuple[str, str]:
        """(reasoning, answer sentence) of the faithful reply."""
        return split_response(self.faithful, self.prompt.language)

    @property
    def english_parts(self) -> tuple[str, str]:
        """(reasoning, answer sentence) of the English reply."""
        return split_response(self.english, "en")


def phrase_notes(languages: Sequence[str]) -> list[str]:
    """One line about languages without attack sentences; [] if all have them."""
    lacking = ", ".join(f"{LANGUAGES[code].name} ({code})" for code in languages if code not in PHRASES)
    return [
        f"{lacking}: no attack sentences in attack_text.json, so negations are signs, and filler and boilerplate are "
        "sentences of replies to other problems."
    ] * bool(lacking)


def steps_of(text: str) -> list[str]:
    """The sentences of `text`. A single sentence (Thai has no full stop) is split after its equations, else before its
    first equation, else in the middle."""
    if len(steps := chunks_of(text)) != 1:
        return steps
    equations = list(_EQUATION.finditer(text))
    after = [match.end() for match in equations if text[match.end() :].strip(" .")]
    before = [match.start() for match in equations[:1] if text[: match.start()].strip()]
    words = text.split()
    if cuts := after or before:
        steps = [text[start:end].strip() for start, end in zip([0, *cuts], [*cuts, None], strict=True)]
    elif len(words) > 1:
        steps = [" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])]
    elif len(text) > 1:
        steps = [text[: len(text) // 2], text[len(text) // 2 :]]
    return steps


def _change_answer(case: Case, rng: random.Random) -> str:
    """The correct steps with another answer: ten times the number, in the same digits, or the next letter."""
    reasoning, sentence = case.parts
    numbers, answer = list(_NUMBER.finditer(sentence)), case.prompt.answer
    if numbers:
        start, end = numbers[-1].span()
        number = sentence[start:end]
        zero = chr(ord(number[0]) - int(number[0]))
        positive = number.isdecimal() and int(number) > 0
        changed = number + zero if positive else chr(ord(zero) + 1) + number
        sentence = sentence[:start] + changed + sentence[end:]
    elif answer and len(answer) == 1:
        sentence = answer_sentence(chr(ord(answer) + 1), case.prompt.language)
    return f"{reasoning} {sentence}"


def _drop(first: bool) -> Callable[[Case, random.Random], str]:
    def template(case: Case, rng: random.Random) -> str:
        reasoning, answer = case.parts
        steps = steps_of(reasoning)
        return " ".join([*(steps[1:] if first else steps[:-1]), answer])

    return template


def _pad_with_neighbour(case: Case, rng: random.Random) -> str:
    reasoning, answer = case.parts
    return f"{reasoning} {split_response(case.neighbours[1], case.prompt.language)[0]} {answer}"


def _pad_with_filler(case: Case, rng: random.Random) -> str:
    reasoning, answer = case.parts
    return f"{case.phrases.filler[1]} {reasoning} {case.phrases.filler[0]} {answer}"


def _switch(first_english: bool) -> Callable[[Case, random.Random], str]:
    def template(case: Case, rng: random.Random) -> str:
        native, english = steps_of(case.parts[0]), steps_of(case.english_parts[0])
        if first_english:
            return " ".join([*english[: len(english) // 2], *native[len(native) // 2 :], case.parts[1]])
        return " ".join([*native[: len(native) // 2], *english[len(english) // 2 :], case.english_parts[1]])

    return template


def _repeat_last(case: Case, rng: random.Random) -> str:
    reasoning, answer = case.parts
    return " ".join([reasoning, *steps_of(reasoning)[-1:] * 3, answer])


def _equations(case: Case, rng: random.Random) -> str:
    """The equations of the reply (its numbers, if it has none) and its answer."""
    equations = " ".join(f"{match.group()}." for match in _EQUATION.finditer(case.parts[0]))
    return f"{equations} {case.parts[1]}" if equations else _signs(case, rng)


def _signs(case: Case, rng: random.Random) -> str:
    """All numbers and signs of the reply without words, and its answer."""
    return " ".join([*(match.group().strip() for match in _SIGNS.finditer(case.parts[0])), case.parts[1]])


def _boxed(case: Case) -> str:
    return f"\\boxed{{{case.prompt.answer}}}"


def _several(case: Case, rng: random.Random) -> str:
    """The correct steps, three wrong answers, and the correct answer."""
    wrong = [answer_sentence(answer, case.prompt.language) for answer in _near(case)]
    return " ".join([case.parts[0], *wrong, case.parts[1]])


def _near(case: Case) -> list[str]:
    """Three wrong answers of the same kind."""
    answer = case.prompt.answer or ""
    if answer.lstrip("-").isdecimal():
        return [str(int(answer) + shift) for shift in (1, 2, 10)]
    if len(answer) == 1 and answer.isalpha():
        return [chr(ord("A") + (ord(answer.upper()) - 65 + shift) % 4) for shift in (1, 2, 3)]
    return [f"{answer} + {shift}" for shift in (1, 2, 10)]


class Attack(NamedTuple):
    """An attack's two templates, (case, rng) -> reply."""

    seen: Callable[[Case, random.Random], str]
    held_out: Callable[[Case, random.Random], str]


def _wrapped(wrapping: Wrapping) -> Attack:
    """Wrapped English steps before the reply's answer; held out: the full English reply in the other form."""
    return Attack(
        lambda case, rng: f"{wrapping.seen(case.english_parts[0])} {case.parts[1]}",
        lambda case, rng: f"{wrapping.held_out(case.english)} {_boxed(case)}",
    )


ATTACKS: dict[str, Attack] = {
    "english_reply": Attack(
        lambda case, rng: case.english,
        lambda case, rng: f"{case.english_parts[1]} {case.english_parts[0]}",
    ),
    "question_copied": Attack(
        lambda case, rng: case.prompt.question,
        lambda case, rng: f"{case.prompt.question} {case.parts[1]}",
    ),
    "empty": Attack(lambda case, rng: "", lambda case, rng: " \n"),
    "repeated": Attack(lambda case, rng: " ".join([case.faithful] * 3), _repeat_last),
    "other_problem": Attack(lambda case, rng: case.neighbours[1], lambda case, rng: case.neighbours[0]),
    "number_changed": Attack(lambda case, rng: change_numbers(case.faithful, rng) or case.faithful, _change_answer),
    "step_dropped": Attack(_drop(True), _drop(False)),
    "negation": Attack(
        lambda case, rng: f"{case.parts[0]} {case.phrases.denied.format(answer=case.prompt.answer)}",
        lambda case, rng: f"{case.phrases.untrue} {case.faithful}",
    ),
    "cut_short": Attack(
        lambda case, rng: case.faithful[: len(case.faithful) // 2].rstrip(),
        lambda case, rng: case.parts[0],
    ),
    "padded": Attack(_pad_with_neighbour, _pad_with_filler),
    "code_switched": Attack(_switch(False), _switch(True)),
    "english_tail": Attack(
        lambda case, rng: f"{case.parts[0]} {case.english_parts[1]}",
        lambda case, rng: f"{case.faithful} {case.english_parts[1]}",
    ),
    "boilerplate": Attack(
        lambda case, rng: case.phrases.boilerplate[0],
        lambda case, rng: f"{case.phrases.boilerplate[1]} {case.parts[1]}",
    ),
    "other_language": Attack(
        lambda case, rng: case.others[0] if case.others else case.faithful,
        lambda case, rng: case.others[-1] if case.others else case.faithful,
    ),
    "equations_only": Attack(_equations, _signs),
    "several_answers": Attack(_several, lambda case, rng: " ".join([case.parts[1]] * 4)),
    "prompt_echoed": Attack(
        lambda case, rng: f"{case.prompt.question} {case.faithful}",
        lambda case, rng: f"{case.parts[0]} {case.prompt.question} {case.parts[1]}",
    ),
    "text_behind_box": Attack(
        lambda case, rng: (
            f"{case.parts[0]} {_boxed(case)} {split_response(case.neighbours[0], case.prompt.language)[0]}"
        ),
        lambda case, rng: f"{_boxed(case)} {case.phrases.filler[1]} {case.phrases.boilerplate[1]}",
    ),
    **{f"english_in_{name}": _wrapped(wrapping) for name, wrapping in WRAPPINGS.items()},
}
"""Name -> attack."""


def attack_reply(name: str, held_out: bool, case: Case, seed: int) -> str:
    """The reply of one attack, a pure function of its arguments.

    Raises:
      DataError: the attack does not change this reply.
    """
    attack = ATTACKS[name]
    template = attack.held_out if held_out else attack.seen
    reply = template(case, random.Random(f"{seed}/{name}/{held_out}/{case.prompt.id}"))
    if " ".join(reply.split()) == " ".join(case.faithful.split()):
        raise DataError(
            f"Attack {name} cannot be made of problem {case.prompt.id} in {case.prompt.language}: the reply "
            f"{case.faithful!r} does not change. Leave this problem out of the audit."
        )
    return reply
