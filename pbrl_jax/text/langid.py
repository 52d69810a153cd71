"""Which language a text is written in, among the languages of a run.

First the script, which settles most pairs and cannot be fooled; then, among the languages of one script, a naive Bayes
classifier over byte n-grams (py3langid), restricted to those languages. Formulas, numbers and code say nothing about
language and are taken out first.
"""

import functools
import re
from collections.abc import Sequence

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.text.languages import LANGUAGES, check_languages, letters_of, script_pattern

MIN_LETTERS = 8
"""Fewer letters than this are too few to tell two languages of one alphabet apart."""
MIN_LETTERS_HAN = 4
"""Han characters without kana, where a run has Chinese and Japanese."""
MIN_LETTERS_SCRIPT = 2
"""Enough where the script alone decides."""
RIGHT_SHARE = 0.8  # ASSUMED: not stated in the material at hand
"""A response is in a language when at least this share of its letters is."""
SEGMENT = 200
"""Letters, roughly, of the pieces that a long response is judged in."""

_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_MATHS = re.compile(
    r"\$\$.+?\$\$|\$[^$\n]{1,200}?\$|\\\[.+?\\\]|\\\(.+?\\\)|\\begin\{([a-z*]+)\}.*?\\end\{\1\}", re.DOTALL
)
_LATEX = re.compile(r"\\[A-Za-z]+\*?(?:\{[^{}]*\})*")
_IDENTIFIER = re.compile(r"\b(?:[A-Za-z]+[_0-9]\w*|[b-hj-zB-HJ-Z])\b(?=\s*[=+*/^-])|https?://\S+")
_NOT_WORDS = re.compile(r"[\d=+*/<>^_#{}\[\]|~%&@$\\-]+")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？।\n])\s*")
_KANA = ("Hira", "Kana")


def plain_words(text: str) -> str:
    """`text` without code, LaTeX, links, numbers and operators; spaces collapsed."""
    for pattern in (_CODE, _MATHS, _LATEX, _IDENTIFIER, _NOT_WORDS):
        text = pattern.sub(" ", text)
    return " ".join(text.split())


def identify_language(text: str, languages: Sequence[str]) -> str | None:
    """The language of `text` among `languages`; None when it is too short, or in a script of none of them.

    Args:
      text: any text; formulas and numbers are ignored.
      languages: codes in pbrl_jax.text.languages.LANGUAGES.
    """
    return _identify(plain_words(text), check_languages(languages))


def language_share(text: str, language: str, languages: Sequence[str]) -> float | None:
    """Share in [0, 1] of the letters of `text` that are written in `language`; None when the text is too short.

    The smaller of the share of letters in a script of the language and the share of letters in segments (of about 200
    letters) that are identified as it; `languages` are the alternatives. A segment too short to tell counts for it.
    """
    codes = check_languages(dict.fromkeys((language, *languages)))
    words = plain_words(text)
    letters = letters_of(words)
    if len(letters) < MIN_LETTERS_SCRIPT:
        return None
    script = len(script_pattern(LANGUAGES[language].scripts).findall(letters)) / len(letters)
    if len(letters) < (_letters_needed(language, codes, letters) if script >= RIGHT_SHARE else MIN_LETTERS):
        # Too few for a classifier: only a foreign script counts against it.
        return None if script >= RIGHT_SHARE else script
    own = total = 0
    for segment in _segments(words):
        size = len(letters_of(segment))
        total += size
        own += size if _identify(segment, codes) in (language, None) else 0
    return min(script, own / total)


def is_right_language(text: str, language: str, languages: Sequence[str]) -> bool | None:
    """Whether `text` is written in `language`, judged among `languages`; None when it is too short to say."""
    share = language_share(text, language, languages)
    return None if share is None else share >= RIGHT_SHARE


def _identify(words: str, languages: tuple[str, ...]) -> str | None:
    letters = letters_of(words)
    if len(letters) < MIN_LETTERS_SCRIPT:
        return None
    candidates = _by_script(letters, languages)
    if len(candidates) == 1:
        return candidates[0] if len(letters) >= _letters_needed(candidates[0], languages, letters) else None
    if not candidates or len(letters) < MIN_LETTERS:
        return None
    return _classifier(frozenset(candidates)).classify(words)[0]


def _by_script(letters: str, languages: tuple[str, ...]) -> list[str]:
    """The languages whose script holds the most letters, and at least half of them."""
    counts = {code: len(script_pattern(LANGUAGES[code].scripts).findall(letters)) for code in languages}
    best = max(counts.values())
    found = [code for code in languages if counts[code] == best and 2 * best >= len(letters)]
    if "ja" in found and len(found) > 1:
        # Japanese prose has kana; Chinese has none, so the script counts alone would leave both.
        kana = len(script_pattern(_KANA).findall(letters))
        found = ["ja"] if kana else [code for code in found if code != "ja"]
    return found


def _letters_needed(code: str, languages: tuple[str, ...], letters: str) -> int:
    """Letters that settle `code` once the script points to it: few for a script that no other language of the run
    writes (kana are Japanese alone), many for the Latin one, which any language may borrow."""
    own = set(LANGUAGES[code].scripts)
    if "Latn" in own:
        return MIN_LETTERS
    shared = any(own & set(LANGUAGES[other].scripts) for other in languages if other != code)
    if not shared or (code == "ja" and script_pattern(_KANA).search(letters)):
        return MIN_LETTERS_SCRIPT
    return MIN_LETTERS_HAN if "Hani" in own else MIN_LETTERS


def _segments(words: str) -> list[str]:
    """Pieces of whole sentences with about SEGMENT characters; a tail below half of that joins its predecessor."""
    pieces: list[str] = []
    for sentence in _SENTENCE_END.split(words):
        if pieces and (len(pieces[-1]) < SEGMENT or not letters_of(sentence)):
            pieces[-1] += " " + sentence
        else:
            pieces.append(sentence)
    if len(pieces) > 1 and len(pieces[-1]) < SEGMENT // 2:
        tail = pieces.pop()
        pieces[-1] += " " + tail
    return pieces


@functools.cache
def _classifier(languages: frozenset[str]):
    """One classifier per set of languages: `set_languages` changes an identifier in place, so none is shared."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    unknown = sorted(languages - set(identifier.labels))
    if unknown:
        raise ConfigError(f"Language identification knows no {', '.join(unknown)}; it knows {identifier.labels}.")
    identifier.set_languages(sorted(languages))
    return identifier
