"""The languages this package knows: name, script, and how each one announces an answer.

Adding a language is one entry of `LANGUAGES` (and, for word problems, one template module). The answer phrases of the
eleven MGSM languages are those of MGSM's own worked solutions; the others follow the same pattern.
"""

import difflib
import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

from pbrl_jax.core.errors import ConfigError, did_you_mean

SCRIPT_RANGES = {
    "Latn": "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a",
    "Cyrl": "\u0400-\u052f\u1c80-\u1c8f\ua640-\ua69f",
    "Arab": "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufeff",
    "Deva": "\u0900-\u097f\ua8e0-\ua8ff",
    "Beng": "\u0980-\u09ff",
    "Telu": "\u0c00-\u0c7f",
    "Thai": "\u0e00-\u0e7f",
    "Hang": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "Hira": "\u3041-\u309f",
    "Kana": "\u30a0-\u30ff\u31f0-\u31ff\uff66-\uff9f",
    "Hani": "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af",
}
"""Unicode blocks of each ISO 15924 script, as the inside of a regular-expression character class."""

LETTER = re.compile(r"[^\W\d_]")


class Language(NamedTuple):
    """One language.

    `answer_phrase` is a format string with one slot `{answer}`; `answer_markers` is a regular expression of the ways
    in which a writer of this language announces a final answer; `comma_decimal` says that 1,5 is one and a half.
    """

    name: str
    scripts: tuple[str, ...]
    answer_phrase: str
    answer_markers: str
    comma_decimal: bool = False


_COLON = r"[*_]*\s*[:\uff1a][*_]*"
_LATIN = ("Latn",)

LANGUAGES: dict[str, Language] = {
    "ar": Language(
        "Arabic",
        ("Arab",),
        "الإجابة هي {answer}.",
        rf"(?:الإجابة|الاجابة|الجواب)(?: النهائية| النهائي| الصحيحة)?(?:\s*(?:هي|هو)\b|{_COLON})",
        True,
    ),
    "bn": Language(
        "Bengali",
        ("Beng",),
        "উত্তর হল {answer}।",
        rf"(?:চূড়ান্ত )?উত্তর(?:টি)?(?:\s*(?:হলো|হল|হ'ল|হচ্ছে)(?=[\s\d:*$\\-])|\s*ঃ|{_COLON})",
    ),
    "de": Language(
        "German",
        _LATIN,
        "Die Antwort lautet {answer}.",
        rf"\b(?:die )?(?:endgültige |richtige )?antwort(?:\s+(?:lautet|ist)\b|{_COLON})",
        True,
    ),
    "en": Language(
        "English", _LATIN, "The answer is {answer}.", rf"\b(?:the )?(?:final |correct )?answer(?:\s+is\b|\s*=|{_COLON})"
    ),
    "es": Language(
        "Spanish",
        _LATIN,
        "La respuesta es {answer}.",
        rf"\b(?:la )?respuesta(?: final| correcta)?(?:\s+es\b|{_COLON})",
        True,
    ),
    "fr": Language(
        "French",
        _LATIN,
        "La réponse est {answer}.",
        rf"\b(?:la )?(?:bonne )?réponse(?: finale| correcte)?(?:\s+est\b|{_COLON})",
        True,
    ),
    "hi": Language("Hindi", ("Deva",), "उत्तर {answer} है।", rf"(?:अंतिम )?उत्तर(?:\s*है(?=\s)|{_COLON}|\s+(?=[-\d(*$\\]))"),
    "id": Language(
        "Indonesian",
        _LATIN,
        "Jawabannya adalah {answer}.",
        rf"\bjawaban(?:nya)?(?: akhir(?:nya)?| yang benar)?(?:\s+(?:adalah|ialah)\b|{_COLON})",
        True,
    ),
    "it": Language(
        "Italian",
        _LATIN,
        "La risposta è {answer}.",
        rf"\b(?:la )?risposta(?: finale| corretta)?(?:\s+è\b|{_COLON})",
        True,
    ),
    "ja": Language(
        "Japanese",
        ("Hira", "Kana", "Hani"),
        "答えは{answer}です。",
        rf"(?:最終的な|正しい|正)?(?:答え|解答|答)(?:は、?|{_COLON})",
    ),
    "ko": Language("Korean", ("Hang",), "답은 {answer}입니다.", rf"(?:최종\s?)?(?:정답|답변|답)(?:은|{_COLON})"),
    "ms": Language(
        "Malay",
        _LATIN,
        "Jawapannya ialah {answer}.",
        rf"\bjawapan(?:nya)?(?: akhir(?:nya)?| yang betul)?(?:\s+(?:ialah|adalah)\b|{_COLON})",
    ),
    "pt": Language(
        "Portuguese",
        _LATIN,
        "A resposta é {answer}.",
        rf"\b(?:a )?resposta(?: final| correta)?(?:\s+é\b|{_COLON})",
        True,
    ),
    "ru": Language(
        "Russian",
        ("Cyrl",),
        "Ответ — {answer}.",
        rf"\b(?:окончательный |правильный )?ответ(?:\s*[—–]|\s+-(?=\s)|\s+равен\b|{_COLON}|\s+(?=-?\d))",
        True,
    ),
    "sw": Language("Swahili", _LATIN, "Jibu ni {answer}.", rf"\bjibu(?: la mwisho| sahihi)?(?:\s+ni\b|{_COLON})"),
    "te": Language(
        "Telugu", ("Telu",), "సమాధానం {answer}.", rf"(?:తుది |సరైన )?సమాధానం(?:{_COLON}|\s+(?=[-\d(*$\\A-J])|(?=\d))"
    ),
    "th": Language("Thai", ("Thai",), "คำตอบคือ {answer}", rf"คำตอบ(?:สุดท้าย|ที่ถูกต้อง)?(?:\s*(?:คือ|เท่ากับ|เป็น)|{_COLON})"),
    "tr": Language(
        "Turkish", _LATIN, "Cevap: {answer}.", rf"\b(?:nihai |doğru )?(?:cevap|yanıt)(?:{_COLON}|\s+(?=-?\d))", True
    ),
    "vi": Language(
        "Vietnamese",
        _LATIN,
        "Câu trả lời là {answer}.",
        rf"(?:câu trả lời|trả lời|đáp án|đáp số)(?: cuối cùng| đúng)?(?:\s+là\b|{_COLON})",
        True,
    ),
    "zh": Language(
        "Chinese", ("Hani",), "答案是 {answer}。", rf"(?:最终|最終|正确|正確)?(?:答案|答)(?:是|为|為|{_COLON})"
    ),
}


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
            raise ConfigError(f"Unknown language {code!r}.{named_like(str(code), LANGUAGES)}")
    doubles = sorted({code for code in codes if codes.count(code) > 1})
    if doubles:
        raise ConfigError(f"Languages given twice: {', '.join(doubles)}. Name each one once.")
    return codes


def language(code: str) -> Language:
    """The entry of `code`, or a ConfigError that lists the known ones."""
    check_languages((code,))
    return LANGUAGES[code]


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
