"""Option letters in the forms of each language: (B), B., **B**, option B, В, খ, 乙."""

import functools
import re
import unicodedata

from pbrl_jax.text.languages import LETTERS, language

_OPTION_WORDS = (
    "alternativa opci[oó]n opção opzione "
    "antwort вариант варіант 选项 選項 選択肢 选 選 옵션 보기 선택지 ข้อ ตัวเลือก বিকল্প অপশন "
    "विकल्प ऑप्शन ఎంపిక ఆప్షన్ الخيار خيار گزینه آپشن phương\\sán lựa\\schọn chọn pilihan opsi seçenek chaguo optie možnost"
).split()
_FILLERS = "therefore|thus|hence|so|donc|also|entonces|por tanto|portanto|quindi"
_ARTICLES = "the|la|le|el|il|a|die|der"
_OPTION_WORD = (
    rf"(?:(?:{_FILLERS})\s*[:,]?\s*)?(?:(?:{_ARTICLES})\s+|l['’])?"
    rf"(?:(?:correct )?(?:option|choice|letter)|letra|lettre|lettera|{'|'.join(_OPTION_WORDS)})?"
)
_SIGNS = r"[\s*_$:：\"'`{“”‘’«»「『]{0,20}"
_BEFORE_OPTION = f"{_SIGNS}{_OPTION_WORD}{_SIGNS}"
_OPTION = re.compile(
    rf"{_BEFORE_OPTION}(?:[(\[【（]\s*([A-Ja-j])\s*[)\]】）]|([A-J])(?![A-Za-z0-9_]|['’](?:s|m|re|ll|d|ve)\b|\.\d|\s*[+*/=^]|\s*\\[A-Za-z]|\s*-(?!\s+[^\W\d_]{{2}})|\s+\d))",
    re.IGNORECASE,
)
_OR = "and|or|und|oder|y|o|ou|et|e|i|и|или|أو|و|या|বা|หรือ|hoặc|或|和|atau|au"
_NOT_BEHIND = re.compile(
    r"[)\]\s*]*(?:(?:is|was)\s+(?:incorrect|wrong|false|not)\b|(?:で|じゃ)(?:は)?な[いく]|[이가은는]?\s*아니|नहीं|নয়|నয়|కాదు|değil|نہیں|نیست)"
)
"""Words behind an option that say that it is wrong: "A is incorrect", "Aではなく"."""
_STOP = r"(?=\s*(?:$|[.,;:!?)\]*।。、，：」』\"'”’»|<\\]|है|हो|आहे|です|입니다|이다|ہے|است))"
_REASON = re.compile(
    r"\s+(?:because|since|as|which|with|not|is|for|porque|weil|denn|da|car|parce|perché|karena|ponieważ)\b",
    re.IGNORECASE,
)


_BOXED = re.compile(
    r"(?i:the )?(?i:(?:option|choice|answer) )?(?:([A-J])|\(([A-Ja-j])\)|([a-j]))\s*[).:]?"
    r"|(?i:option |choice )?(?:([A-J])\s*[).:]|\(([A-J])\)[.:]?)\s+(?=[\w\"'“$]|-\d|\\(?:[dt]?frac|sqrt|pi)\b)"
    r"(?!.*(?:\\ |\b[A-J]\s*[).:](?!\d)))[^\n]*"
)
"""An option letter, alone or with the option's text, in which no further option is named."""
_SPACED = re.compile(r"^(\([A-Ja-j]\)|[A-J][).:])(?:\s|~|\\[ ,;:!]|\\q?quad(?![A-Za-z]))+(?=\S)")
"""A letter and the LaTeX spaces between it and its text."""
_SMALL = re.compile(rf"{_BEFORE_OPTION}(?:([b-dfghj])[*_]*[).]?|([aei])[*_]*[).])[\s*_\"'”’.]*$")
"""A small letter that is all of a line; those that are words or numbers need a bracket or full stop."""


def boxed_option(content: str) -> str | None:
    """The option letter of a box's content ("B", "(B)", "B. Paris"); None if it is none. A small letter, which may be a
    variable, stays small."""
    text = re.sub(r"^\(\s*([A-Ja-j])\s*\)", r"(\1)", unicodedata.normalize("NFKC", content))
    match = _BOXED.fullmatch(_SPACED.sub(r"\1 ", text))
    if match is None:
        return None
    return match[3] or next(letter for letter in match.groups() if letter).upper()


def option_letter(line: str, code: str, small: bool = False) -> str | None:
    """The option letter at the beginning of a line; "" if it names two or may not be an option; None without one.

    With `small` also a small letter that is all of the line, which could be a variable elsewhere."""
    text = unicodedata.normalize("NFKC", line).replace("**", "")
    match = _OPTION.match(text)
    if match is not None and (match[1] or match[2].isupper()):
        letter, rest = (match[1] or match[2]).upper(), text[match.end() :]
        if _second_option(code).match(rest) or _NOT_BEHIND.match(rest):
            return ""
        word = re.match(r"\s+[^\W\d_]", rest)
        # A, E and I are words of many languages.
        if match[2] and letter in "AEI" and word and "Latn" in language(code).scripts and not _REASON.match(rest):
            return None
        return letter
    if small and (match := _SMALL.match(text)) is not None:
        return (match[1] or match[2]).upper()
    if code == "en" and re.match(rf"{_BEFORE_OPTION}[A-J]\s+\d", text):
        return ""
    native = native_option(code)
    match = native.match(text) if native else None
    if match is None:
        return None
    if _second_option(code).match(text[match.end() :]) or _NOT_BEHIND.match(text[match.end() :]):
        return ""
    index = next(int(name[1:]) for name, value in match.groupdict().items() if value)
    return LETTERS[index % 10]


def option_called_right(text: str, code: str) -> tuple[int, str] | None:
    """(start, letter) where the text calls one option right ("so option B is correct"), without a condition; None where
    it calls none so, or several."""
    found = [match for match in _called_right(code).finditer(text) if not match["condition"]]
    return (found[-1].start(), found[-1]["letter"]) if len({match["letter"] for match in found}) == 1 else None


@functools.cache
def _called_right(code: str) -> re.Pattern:
    entry = language(code)
    if not entry.is_correct:
        return re.compile("(?!)(?P<condition>)(?P<letter>)")
    words = f"option|choice|answer|letter|letra|lettre|réponse|respuesta|resposta|risposta|{'|'.join(_OPTION_WORDS)}"
    start, end = (r"(?<![^\W_])", r"(?![^\W_])") if entry.spaced else ("", "")
    condition = rf"{start}(?P<condition>(?:if|whether|si|wenn|ob|falls|se|jika|如果)\s*(?:(?:{_ARTICLES})\s+|l['’])?)?"
    letter = r"[\s*]*[(（]?(?P<letter>(?-i:[A-J]))[)）]?[\s*]*"
    return re.compile(rf"{condition}(?:{words}){letter}(?:{entry.is_correct}){end}", re.IGNORECASE)


@functools.cache
def _second_option(code: str) -> re.Pattern:
    """A pattern of "and" or "or" and a further option behind one."""
    entry = language(code)
    words = "|".join(filter(None, (_OR, entry.ors, entry.ands)))
    end = r"(?![^\W\d_])" if entry.spaced else ""
    native = rf"|(?:{'|'.join(entry.options)}){end}" if entry.options else ""
    return re.compile(
        rf"[)\]\s*]*[,،、]?\s*(?:[,،、&]|{words})\s*[(\[]?(?:[A-Ja-j](?![A-Za-z]){native})", re.IGNORECASE
    )


@functools.cache
def native_option(code: str) -> re.Pattern | None:
    """A pattern of the native option letters of language `code`, with groups o0, o1, ...; None without any."""
    options = language(code).options
    if not options:
        return None
    groups = "|".join(f"(?P<o{i}>{letter})" for i, letter in enumerate(options))
    bare = groups.replace("<o", "<o1")  # the same letters, numbered from 10; option_letter reads the last digit
    bare = rf"(?:{bare})(?:(?=です|입니다|이다)|(?![^\W\d_]){_STOP})"
    return re.compile(rf"{_BEFORE_OPTION}(?:[(\[【]\s*(?:{groups})\s*[)\]】]|{bare})", re.IGNORECASE)
