"""The supported languages: one entry of languages.json each.

An entry holds the name, the scripts, the NLLB code, the phrase that states an answer and the words that announce one,
the forms of numbers and options, and the texts of prompts. Only name, scripts and NLLB code are required: a language
without a phrase states its answer in a box, and one without instructions gets English instructions that name it
(`fallback_notes` reports both). The phrases of the eleven MGSM languages are those of MGSM's own worked solutions. The
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
"""Unicode blocks of each ISO 15924 script, as the content of a regular-expression character class."""

UNSPACED = ("Thai", "Laoo", "Khmr", "Mymr", "Tibt", "Hani", "Hira", "Kana", "Hang")
"""Scripts that do not separate words, or words and their endings, by spaces."""

LETTER = re.compile(r"[^\W\d_]")
_BOX_PHRASE = r"\boxed{{{answer}}}"
_COLON = r"[*_\"'`]*\s*[:\uff1aঃ】][*_]*"
_DIGIT_FOLLOWS = r"[*_]*\s*(?=[-\u2212\u2013+(*$€£¥₹฿₩₽₫৳₦₺\\%]*\d|[€£¥₹฿₩₽₫৳₦₺]\s\d)(?!\d+[*_]*\s*[:\uff1a](?!\d))"
"""A number, but not the number of one of several answers ("2: ...")."""
_LETTER_FOLLOWS = r"[*_]*\s+(?:[^\W\dA-Za-z_]\S*\s+)?(?=[(*$\\]|[A-J](?![^\W_]))"
LETTERS = "ABCDEFGHIJ"
VOWEL_SIGN = (
    "[\u0900-\u0903\u093a-\u094f\u0981-\u0983\u09bc-\u09cd\u0a3c-\u0a4d\u0abc-\u0acd\u0b3c-\u0b4d\u0bbe-\u0bcd"
    "\u0c3e-\u0c4d\u0cbe-\u0ccd]"
)
"""Combining marks of India's scripts, which belong to a word; regular expressions do not count them as letters."""


class Language(NamedTuple):
    """One language.

    `label` is its label in the language identifiers, "" if none supports it. `answer_phrase` is a format string with
    one slot `{answer}`. `answer` and `verbs` are regular expressions of the words for "the answer" and "is"; between
    them `to_question` ("to the question") may stand; `is_correct` are words behind an option ("is correct"); `result`
    is one of words that announce an answer only if it follows immediately; with `bare` a number may follow without a
    verb. With `comma_decimal` 1,5 is one and a half. `options` are the native option letters in order (alternatives
    separated by bars); `scales` maps powers of ten to their words; `numbers` are the words of 0, 1, 2 ..., `tens` those
    of 30 to 100; `more_numbers` are further ones with their values, `number_joint` is what may stand between the parts
    of a number word, `and_half` are the words of "and a half" behind a number, and `half_before` is one that adds a
    half to the number behind it. `ors` and `ands` join several numbers, `to` the ends of a range; `comparisons` and
    `comparisons_after` are the words of "more than" before and behind a number ("or more", "remainder 5"); `measures`
    are units of quantities in several parts ("1 hour 30 minutes"). `ask` holds the words before a question and before
    its solution; `instruction`, `lead`, `boxed` and `tags` are sentences of prompts (see pbrl_jax.text.prompts), ""
    where the language has none.
    """

    name: str
    scripts: tuple[str, ...]
    nllb: str
    label: str
    answer_phrase: str = _BOX_PHRASE
    answer: str = ""
    is_correct: str = ""
    to_question: str = ""
    verbs: str = ""
    result: str = ""
    bare: bool = False
    comma_decimal: bool = False
    options: tuple[str, ...] = ()
    scales: Mapping[str, str] = {}
    numbers: str = ""
    tens: str = ""
    more_numbers: str = ""
    number_joint: str = ""
    and_half: str = ""
    half_before: str = ""
    ors: str = ""
    ands: str = ""
    to: str = ""
    comparisons: str = ""
    comparisons_after: str = ""
    measures: str = ""
    ask: tuple[str, str] = ("Question:", "Step-by-Step Answer:")
    instruction: str = ""
    lead: str = ""
    boxed: str = ""
    tags: str = ""

    @property
    def phrased(self) -> bool:
        """Whether the language has its own sentence that states an answer."""
        return self.answer_phrase != _BOX_PHRASE

    @property
    def spaced(self) -> bool:
        """Whether words are separated by spaces."""
        return not set(self.scripts) & set(UNSPACED)

    @property
    def answer_markers(self) -> str:
        """Regular expression of the announcements of a final answer, up to the start of the answer."""
        return _announcement(self, self.answer, self.verbs, self.bare)

    @property
    def result_markers(self) -> str:
        """The same for `result`."""
        return _announcement(self, self.result, self.verbs, False)


def _announcement(entry: Language, noun: str, verbs: str, bare: bool) -> str:
    if not noun:
        return "(?!)"
    start, end = (r"(?<![^\W_])", r"(?![^\W_])") if entry.spaced else ("", "")
    noun = f"(?:{noun})(?:{entry.to_question})?" if entry.to_question else noun
    # Thai SARA AM is one character or, after NFKC, two.
    noun = noun.replace("ำ", "(?:ำ|ํา)")
    follows = [_COLON, r"[*_]*\s*="]
    follows += [rf"{end}[*_]*\s*(?:{verbs}){'' if verbs.endswith(')') else end}"] if verbs else []
    follows += [_DIGIT_FOLLOWS, end + _LETTER_FOLLOWS] if bare else []
    follows += [rf"[*_]*\s+(?={nfc(entry.half_before)}\s+\d)"] if bare and entry.half_before else []
    follows += [rf"\s+(?=(?:{'|'.join(entry.options)})(?:[\s.।۔]|$))"] if bare and entry.options else []
    heading = rf"(?m:^[ \t]*[#*_>][#*_> \t]*(?:{noun})[*_ \t]*$)"
    return rf"(?:{heading}|{start}(?:{noun})(?:{'|'.join(follows)}))"


def _read_table() -> dict[str, Language]:
    table = json.loads(Path(__file__).with_name("languages.json").read_text(encoding="utf-8"))
    languages = {}
    for code, entry in table.items():
        # "like" names the entry from which missing fields are copied.
        entry = {"label": code, **table.get(entry.get("like"), {}), **entry}
        entry.pop("like", None)
        if "phrase" in entry:
            entry["answer_phrase"] = entry.pop("phrase")
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in entry.items()}
        languages[code] = Language(**fields)
    return languages


LANGUAGES: dict[str, Language] = _read_table()


OTHER_CODES = """
alb sq ara ar arm hy aze az baq eu bur my chi zh cmn zh cze cs dut nl ekk et fas fa fre fr ful ff geo ka ger de gre el
ice is in id iw he jw jv lav lv mac mk mao mi may ms mlg mg mon mn msa ms nb no nep ne nor no ori or orm om per fa
pus ps rum ro slo sk sqi sq swa sw tib bo uzb uz bangla bn chewa ny chichewa ny farsi fa kiswahili sw luganda lg
mandarin zh oriya or
"""
"""Codes and names that neither we nor FLORES write, each with our code behind it: ISO 639's codes of a language with
several forms (AfriMGSM's `swa`) and of bibliographies, codes that it had before, and further English names."""


@functools.cache
def spellings() -> dict[str, str]:
    """Our codes by what data sets write for them, in lower case with hyphens: the English name, the codes of three
    letters, the FLORES code, a tag of Chinese with its script or region, and our code itself."""
    others = OTHER_CODES.split()
    found = dict(zip(others[::2], others[1::2], strict=True))
    found |= {entry.name.lower(): code for code, entry in LANGUAGES.items()}
    found |= {entry.nllb.partition("_")[0]: code for code, entry in reversed(LANGUAGES.items())}
    found |= {f"zh-{tag}": "zho_Hant" for tag in ("hant", "tw", "hk", "mo")} | {"zh-hans": "zh"}
    found |= {entry.nllb.replace("_", "-").lower(): code for code, entry in reversed(LANGUAGES.items())}
    return found | {code.replace("_", "-").lower(): code for code in LANGUAGES}


def known_code(code: str) -> str | None:
    """Our code of a language, given ours, its FLORES or ISO 639 code, its English name, or a tag with a region
    (`sw-KE`, `zh_CN`); None for an unknown one."""
    tag = code.strip().replace("_", "-").lower()
    if tag in spellings():
        return spellings()[tag]
    language, _, region = tag.partition("-")
    return spellings().get(language) if re.fullmatch("[a-z]{2}|[0-9]{3}", region) else None


def named_like(text: str, known: Iterable[str]) -> str:
    """A hint for an unknown code `text`: the code of a language with a similar name, and similar codes, of `known`."""
    names = {LANGUAGES[code].name.lower(): code for code in known if code in LANGUAGES}
    near = difflib.get_close_matches(text.lower(), names, n=1, cutoff=0.7)
    hint = f" Did you mean {names[near[0]]!r}?" if near else ""
    return f"{hint} {did_you_mean(text, known)}"


def check_languages(codes: Iterable[str]) -> tuple[str, ...]:
    """`codes` as a tuple.

    Raises:
      ConfigError: no code, an unknown one, or one given twice.
    """
    codes = tuple(codes)
    if not codes:
        raise ConfigError("No languages given. Set data.languages, for example --data.languages en sw zh.")
    for code in codes:
        if code not in LANGUAGES:
            if several := re.fullmatch(r"[\w-]+(?:[\s,;]+[\w-]+)+", str(code)):
                words = re.split(r"[\s,;]+", several.group())
                raise ConfigError(
                    f"Languages {code!r} are one word; expected {len(words)} words, as in --data.languages "
                    f"{' '.join(words)} (--languages and --to take {','.join(words)})."
                )
            ours = known_code(str(code))
            near = f" Did you mean {ours!r}?" if ours else named_like(str(code), LANGUAGES)
            raise ConfigError(f"Unknown language {code!r}.{near}")
    repeated = sorted({code for code in codes if codes.count(code) > 1})
    if repeated:
        raise ConfigError(f"Languages given twice: {', '.join(repeated)}. Name each one once.")
    return codes


def language(code: str) -> Language:
    """The entry of `code`, or a ConfigError for an unknown one."""
    check_languages((code,))
    return LANGUAGES[code]


def fallback_notes(codes: Iterable[str]) -> list[str]:
    """One line for each language without its own answer phrase or instructions."""
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


def nfc(text: str) -> str:
    """`text` in Unicode's composed form (NFC)."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)
