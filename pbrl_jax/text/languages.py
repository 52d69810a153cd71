"""The languages this package knows: one entry of languages.json each.

An entry holds the name, the scripts, the NLLB code, the phrase that states an answer and the words that announce one,
how numbers and options are written, and what a prompt says. Only name, scripts and NLLB code are required: a language
without a phrase states its answer in a box, and one without instructions is asked in English, by its name
(`fallback_notes` says so). The phrases of the eleven MGSM languages are those of MGSM's own worked solutions. The
others are ours; no native speaker has reviewed them.
"""

import difflib
import functools
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pbrl_jax.core.errors import ConfigError, did_you_mean

SCRIPT_RANGES = {
    "Latn": "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a",
    "Grek": "\u0370-\u03ff\u1f00-\u1fff",
    "Cyrl": "\u0400-\u052f\u1c80-\u1c8f\ua640-\ua69f",
    "Armn": "\u0531-\u058f\ufb13-\ufb17",
    "Hebr": "\u0590-\u05ff\ufb1d-\ufb4f",
    "Arab": "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufeff",
    "Deva": "\u0900-\u097f\ua8e0-\ua8ff",
    "Beng": "\u0980-\u09ff",
    "Guru": "\u0a00-\u0a7f",
    "Gujr": "\u0a80-\u0aff",
    "Orya": "\u0b00-\u0b7f",
    "Taml": "\u0b80-\u0bff",
    "Telu": "\u0c00-\u0c7f",
    "Knda": "\u0c80-\u0cff",
    "Mlym": "\u0d00-\u0d7f",
    "Sinh": "\u0d80-\u0dff",
    "Thai": "\u0e00-\u0e7f",
    "Laoo": "\u0e80-\u0eff",
    "Tibt": "\u0f00-\u0fff",
    "Mymr": "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f",
    "Geor": "\u10a0-\u10ff\u1c90-\u1cbf\u2d00-\u2d2f",
    "Ethi": "\u1200-\u139f\u2d80-\u2ddf\uab00-\uab2f",
    "Khmr": "\u1780-\u17ff",
    "Vaii": "\ua500-\ua63f",
    "Hang": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "Hira": "\u3041-\u309f",
    "Kana": "\u30a0-\u30ff\u31f0-\u31ff\uff66-\uff9f",
    "Hani": "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af",
}
"""Unicode blocks of each ISO 15924 script, as the inside of a regular-expression character class."""

UNSPACED = ("Thai", "Laoo", "Khmr", "Mymr", "Tibt", "Hani", "Hira", "Kana", "Hang")
"""Scripts in which a word may follow another without a space, or takes its endings without one."""

LETTER = re.compile(r"[^\W\d_]")
_BOX_PHRASE = r"\boxed{{{answer}}}"
_COLON = r"[*_]*\s*[:\uff1aঃ][*_]*"
_DIGIT_FOLLOWS, _LETTER_FOLLOWS = r"[*_]*\s*(?=[-\u2212\u2013+(*$\\%]*\d)", r"[*_]*\s+(?=[(*$\\A-J])"
LETTERS = "ABCDEFGHIJ"
VOWEL_SIGN = (
    "[\u0900-\u0903\u093a-\u094f\u0981-\u0983\u09bc-\u09cd\u0a3c-\u0a4d\u0abc-\u0acd\u0b3c-\u0b4d\u0bbe-\u0bcd"
    "\u0c3e-\u0c4d\u0cbe-\u0ccd]"
)
"""Marks that go on with a word of India's scripts; regular expressions count them as no letters."""


class Language(NamedTuple):
    """One language.

    `label` is what the identifiers call it, "" where none knows it. `answer_phrase` is a format string with one slot
    `{answer}`. `answer` and `verbs` are regular expressions of the words for "the answer" and "is"; `result`, of words
    that announce an answer only where it follows at once; `bare` says that a number may follow without a verb.
    `comma_decimal` says that 1,5 is one and a half. `options` are the native option letters in order (alternatives
    between bars); `scales` is power of ten -> its words; `numbers` the words of 0, 1, 2 ..., `tens` those of 30 to 100.
    `ask` is what stands before a question and before its solution; `instruction`, `lead`, `boxed` and `tags` are the
    sentences of prompts (see pbrl_jax.text.prompts). What is "" has no wording of our own.
    """

    name: str
    scripts: tuple[str, ...]
    nllb: str
    label: str
    answer_phrase: str = _BOX_PHRASE
    answer: str = ""
    verbs: str = ""
    result: str = ""
    bare: bool = False
    comma_decimal: bool = False
    options: tuple[str, ...] = ()
    scales: Mapping[str, str] = {}
    numbers: str = ""
    tens: str = ""
    ask: tuple[str, str] = ("Question:", "Step-by-Step Answer:")
    instruction: str = ""
    lead: str = ""
    boxed: str = ""
    tags: str = ""

    @property
    def phrased(self) -> bool:
        """Whether the language has a sentence of its own that states an answer."""
        return self.answer_phrase != _BOX_PHRASE

    @property
    def spaced(self) -> bool:
        """Whether words end at spaces."""
        return not set(self.scripts) & set(UNSPACED)

    @property
    def answer_markers(self) -> str:
        """Regular expression of the announcements of a final answer, up to where the answer begins."""
        return _announcement(self, self.answer, self.verbs, self.bare)

    @property
    def result_markers(self) -> str:
        """The same for `result`."""
        return _announcement(self, self.result, self.verbs, False)


def _announcement(entry: Language, noun: str, verbs: str, bare: bool) -> str:
    if not noun:
        return "(?!)"
    start, end = (r"(?<![^\W_])", r"(?![^\W_])") if entry.spaced else ("", "")
    # Thai SARA AM may arrive composed or, after NFKC, in two parts.
    noun = noun.replace("ำ", "(?:ำ|ํา)")
    follows = [_COLON, r"[*_]*\s*="]
    follows += [rf"{end}[*_]*\s*(?:{verbs}){'' if verbs.endswith(')') else end}"] if verbs else []
    follows += [_DIGIT_FOLLOWS, end + _LETTER_FOLLOWS] if bare else []
    follows += [rf"\s+(?=(?:{'|'.join(entry.options)})[\s.।۔])"] if bare and entry.options else []
    heading = rf"(?m:^[ \t]*[#*_>][#*_> \t]*(?:{noun})[*_ \t]*$)"
    return rf"(?:{heading}|{start}(?:{noun})(?:{'|'.join(follows)}))"


def _read_table() -> dict[str, Language]:
    table = json.loads(Path(__file__).with_name("languages.json").read_text(encoding="utf-8"))
    found = {}
    for code, entry in table.items():
        # "like" takes over what the entry does not say itself.
        entry = {"label": code, **table.get(entry.get("like"), {}), **entry}
        entry.pop("like", None)
        if "phrase" in entry:
            entry["answer_phrase"] = entry.pop("phrase")
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in entry.items()}
        found[code] = Language(**fields)
    return found


LANGUAGES: dict[str, Language] = _read_table()
ALIASES = {entry.nllb: code for code, entry in reversed(LANGUAGES.items()) if entry.nllb not in LANGUAGES}
"""Names of data sets (FLORES, NLLB, Belebele: `afr_Latn`) -> our code."""


def known_code(code: str) -> str | None:
    """Our code of a language that a data set may call by its FLORES name; None for an unknown one."""
    code = ALIASES.get(code, code)
    return code if code in LANGUAGES else None


def named_like(text: str, known: Iterable[str]) -> str:
    """What to type for `text`, of the codes `known`: that of a language whose name is near it, else a near code."""
    names = {LANGUAGES[code].name.lower(): code for code in known if code in LANGUAGES}
    near = difflib.get_close_matches(text.lower(), names, n=1, cutoff=0.7)
    hint = f" Did you mean {names[near[0]]!r}?" if near else ""
    return f"{hint} {did_you_mean(text, known)}"


def check_languages(codes: Iterable[str]) -> tuple[str, ...]:
    """`codes` as a tuple, or a ConfigError that names the unknown ones, the empty list and the doubles."""
    codes = tuple(codes)
    if not codes:
        raise ConfigError("No languages given. Set data.languages, for example --data.languages en sw zh.")
    for code in codes:
        if code not in LANGUAGES:
            near = f" Did you mean {ALIASES[code]!r}?" if code in ALIASES else named_like(str(code), LANGUAGES)
            raise ConfigError(f"Unknown language {code!r}.{near}")
    doubles = sorted({code for code in codes if codes.count(code) > 1})
    if doubles:
        raise ConfigError(f"Languages given twice: {', '.join(doubles)}. Name each one once.")
    return codes


def language(code: str) -> Language:
    """The entry of `code`, or a ConfigError that lists the known ones."""
    check_languages((code,))
    return LANGUAGES[code]


def fallback_notes(codes: Iterable[str]) -> list[str]:
    """One line for each language whose phrase or instructions are the general ones."""
    notes = []
    for code in dict.fromkeys(codes):
        entry = language(code)
        lacking = [] if entry.phrased else ["answer phrase (answers are announced in \\boxed{})"]
        lacking += [] if entry.instruction and entry.lead else ["chat instruction (prompts ask in English)"]
        if lacking:
            notes.append(f"{entry.name} ({code}) has no {' and no '.join(lacking)} of its own in languages.json.")
    return notes


def answer_sentence(answer: str, code: str) -> str:
    """The sentence in which language `code` states `answer`: "Jibu ni 12."."""
    return language(code).answer_phrase.format(answer=answer)


@functools.cache
def script_pattern(scripts: tuple[str, ...]) -> re.Pattern:
    """Matches one character of any of `scripts`."""
    return re.compile("[" + "".join(SCRIPT_RANGES[script] for script in scripts) + "]")


def letters_of(text: str) -> str:
    """The letters of `text`, without digits, marks, spaces and signs."""
    return "".join(LETTER.findall(text))


def script_share(text: str, code: str) -> float | None:
    """Share in [0, 1] of the letters of `text` written in a script of language `code`; None without any letter."""
    letters = letters_of(text)
    if not letters:
        return None
    return len(script_pattern(language(code).scripts).findall(letters)) / len(letters)


def nfc(text: str) -> str:
    """`text` in Unicode's composed form."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)
