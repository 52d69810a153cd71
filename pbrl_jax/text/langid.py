"""Language identification of texts.

The script decides most pairs reliably. Then a naive Bayes classifier over byte n-grams (py3langid) compares with all
languages that it supports, so that a drift to a language outside the run is detected. Languages that it does not
support are identified by CLD2, and those that neither supports by their script if no other language shares it
(`check_identifiable`). Within the sets of CONFUSABLE no identifier is reliable: a language that the run does not use
counts as the one that it uses, and the pairs of a run are measured (pbrl_jax.text.alike). Long texts are judged in
windows. Words in formulas, code, tags and links count as well (pbrl_jax.text.words); numbers, units, variables and
names are ignored.
"""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.text.languages import LANGUAGES, check_languages, letters_of, script_pattern
from pbrl_jax.text.words import english_share, has_english, judged_lines, plain_words, without_names

MIN_LETTERS = 8
"""Letters needed to tell apart two languages of one alphabet."""
MIN_LETTERS_HAN = 4
"""Han characters needed without kana, in a run with Chinese and Japanese."""
TAIL_WORDS = 3
"""Words in another script that count as a sentence after one without a full stop."""
MIN_LETTERS_SCRIPT = 2
"""Letters needed where the script alone decides."""
RIGHT_SHARE = 0.8  # ASSUMED: not stated in the material at hand
"""Smallest share of letters in a language with which a response is in that language."""
WINDOW, SMALL_WINDOW, SURE_WINDOW = 60, 20, 40
"""Letters of the windows that are judged: long sentences are cut to about the first, short ones joined up to the
second; windows from the third on need only a small lead."""


Alternatives = Sequence[str | tuple[str, str]]
"""The languages of a run, and pairs of them that count as one."""


class Margins(NamedTuple):
    """Lead in log-likelihood (nats) with which another language wins over the expected one: a language of the run, or
    any other language, which is less likely and so needs a larger lead."""

    run: float
    outside: float


SURE_MARGINS, SMALL_MARGINS = Margins(1.0, 12.0), Margins(4.0, 15.0)  # ASSUMED: measured on MGSM's questions
"""For windows of SURE_WINDOW letters, and for smaller ones."""

CONFUSABLE = {
    "Spanish": ("es", "gl", "an", "ext"),
    "Portuguese": ("pt", "gl"),
    "Catalan": ("ca", "oc", "an"),
    "Italian": ("it", "vec", "lij"),
    "French": ("fr", "wa"),
    "German": ("de", "lb"),
    "English": ("en", "pcm"),
    "East and South Slavic": ("ru", "bg", "sr", "mk"),
    "Serbo-Croatian": ("hr", "bs", "sr"),
    "Scandinavian": ("da", "no", "nn"),
    "Malay": ("id", "ms"),
    "Chinese": ("zh", "wuu", "yue"),
    "Arabic": ("ar", "arz", "ary"),
    "Turkish": ("tr", "crh"),
    "Uzbek": ("uz", "uzs"),
    "Nguni": ("zu", "xh", "ss"),
    "Sotho": ("st", "nso", "tn"),
    "Philippine": ("tl", "bcl", "ceb", "war"),
    "Czech and Slovak": ("cs", "sk"),
    "Javanese and Sundanese": ("jv", "su"),
    "Latvian": ("lv", "ltg"),
    "Kurdish": ("ku", "sdh"),
}
"""Sets of languages that cannot be told apart by a few words. A language may be in two sets."""

_SENTENCE_END = re.compile(r"(?<=[.!?。！？।؟])\s*")
_WORDS = re.compile(r"[^\W\d_]+")
_KANA = ("Hira", "Kana")
_EXTRA_WEIGHT = ((script_pattern(("Hani",)), 2), (script_pattern(("Hang", *_KANA)), 1))


def identify_language(text: str, languages: Sequence[str] | None = None) -> str | None:
    """The language of `text`; None if it is too short, or in a script of none of the languages.

    Args:
      text: any text; signs of formulas and numbers are ignored.
      languages: the alternatives, codes of pbrl_jax.text.languages.LANGUAGES; None: all languages of the classifier
        (including codes outside LANGUAGES), and texts of fewer than SMALL_WINDOW letters are too short.
    """
    words = plain_words(text)
    if languages is not None:
        return _identify(words, check_languages(languages))
    if _size(words) < SMALL_WINDOW:
        return None
    scores = _scores(words)
    return max(scores, key=lambda code: scores[code])


@functools.cache
def identifier_of(code: str) -> str:
    """The identifier of a language: "py3langid", "cld2", "script" (which no other language shares), or "" for none."""
    label, scripts = LANGUAGES[code].label, LANGUAGES[code].scripts
    if label in _classifier().labels:
        return "py3langid"
    if label and label in _cld2_labels():
        return "cld2"
    return "" if set(scripts) & {"Latn", "Cyrl", "Arab", "Deva"} else "script"


def check_identifiable(languages: Sequence[str]) -> None:
    """Raise ConfigError for languages without an identifier, as their gate would accept any text."""
    lacking = [f"{LANGUAGES[code].name} ({code})" for code in check_languages(languages) if not identifier_of(code)]
    if lacking:
        raise ConfigError(
            f"No identifier here knows {', '.join(lacking)}, whose script other languages use, too. Set "
            "reward.language_gate to tokens (with text of each language) or off, or leave the language out."
        )


def language_share(text: str, language: str, languages: Alternatives) -> float | None:
    """Share in [0, 1] of the letters of `text` that are written in `language`; None if the text is too short.

    A letter counts if it is in a script of the language and its window (a sentence, or about 60 letters of one) is
    identified as the language or as one that cannot be told from it. In such windows each different word in a foreign
    script (iPhone) counts against the language once. `languages` are those of the run: another one of them wins a
    window with a small lead, any other language with a large one, and one in a pair with `language` never. Han letters
    count three times, kana and Hangul twice, for about the same content as Latin letters. A text that is too short to
    identify and contains English words has share 0. In Latin letters, English words between those of the language
    (see english_share) count against it.
    """
    codes = _checked((language, *languages))
    lines = judged_lines(text, LANGUAGES[language].scripts)
    words = " ".join(lines)
    letters = letters_of(words)
    if language != "en" and len(letters) < 2 * MIN_LETTERS and has_english(words, language):
        return 0.0
    if len(letters) < MIN_LETTERS_SCRIPT:
        return 0.0 if letters and not _own_script(letters, language) else None
    script = len(_own_script(letters, language)) / len(letters)
    if len(letters) < (_letters_needed(language, codes, letters) if script >= RIGHT_SHARE else MIN_LETTERS):
        # Too few letters for a classifier: only a foreign script counts against the language.
        return None if script >= RIGHT_SHARE else script
    right = wrong = 0.0
    names, capitalised, mine = set[str](), set[str](), list[str]()
    for window in _windows(lines):
        if not _is_language(window, language, codes, capitalised):
            wrong += _size(window)
            continue
        right += _size(_own_script(letters_of(window), language))
        mine.append(window)
        for word in _foreign_words(window, language) - names:
            names.add(word)
            wrong += _size(word)
    mixed = language != "en" and "Latn" in LANGUAGES[language].scripts
    english = right * english_share(" ".join(mine), language) if mixed else 0.0
    return (right - english) / (right + wrong)


def is_right_language(text: str, language: str, languages: Alternatives, share: float = RIGHT_SHARE) -> bool | None:
    """Whether `text` is written in `language` up to its end; None if it is too short, or no identifier supports the
    language.

    At least `share` of its letters must be in the language (see language_share), and its last sentence must not be in
    another language.
    """
    measured = language_share(text, language, languages) if identifier_of(language) else None
    return None if measured is None else measured >= share and not foreign_tail(text, language, languages)


@functools.lru_cache(maxsize=256)
def _checked(languages: tuple[str | tuple[str, str], ...]) -> tuple[str | tuple[str, str], ...]:
    check_languages(dict.fromkeys(code for code in languages if isinstance(code, str)))
    return tuple(dict.fromkeys(languages))


def foreign_tail(text: str, language: str, languages: Alternatives) -> bool:
    """Whether the last sentence of `text` is in another language; False if it has too few letters to identify."""
    codes = _checked((language, *languages, "en"))
    lines = judged_lines(text, LANGUAGES[language].scripts)
    sentences = [piece for piece in _SENTENCE_END.split(lines[-1]) if letters_of(piece)] if lines else []
    letters = letters_of(sentences[-1]) if sentences else ""
    if len(letters) < MIN_LETTERS:
        return False
    # Without full stops (Thai), the text after the last letter in a script of the language is a sentence as well.
    rest = script_pattern(LANGUAGES[language].scripts).split(sentences[-1])[-1]
    foreign = has_english(rest, language) or len(_WORDS.findall(rest)) >= TAIL_WORDS
    if len(letters_of(rest)) >= MIN_LETTERS and foreign:
        return True
    share = len(_own_script(letters, language)) / len(letters)
    return share < 0.5 or not _is_language(sentences[-1], language, codes, set())


def _is_language(words: str, language: str, codes: Alternatives, names: set[str]) -> bool:
    """Whether no other language leads `language` by more than its margin, for `words` with or without their names, to
    which `names`, those of the text so far, grows."""
    size = _size(words)
    if size < MIN_LETTERS or identifier_of(language) in ("script", ""):
        return True
    if language == "ja" and size >= SMALL_WINDOW and not script_pattern(_KANA).search(words):
        return False  # Japanese prose has kana; the classifier alone identifies short Chinese clauses as Japanese
    judge = _leads if identifier_of(language) == "py3langid" else _cld2_agrees
    if judge(words, language, codes):
        return True
    rest = without_names(words, names)
    return len(rest) < len(words) and _size(rest) >= max(SMALL_WINDOW, size / 2) and judge(rest, language, codes)


@functools.lru_cache(maxsize=256)
def _alike(language: str, codes: Alternatives) -> tuple[frozenset[str], frozenset[str]]:
    """(labels that count as `language`, labels of the run). The former are its own label, those of its pairs, and those
    of its CONFUSABLE sets that the run does not use."""
    label = LANGUAGES[language].label
    run = frozenset(LANGUAGES[code].label for code in codes if isinstance(code, str))
    pairs = {LANGUAGES[code].label for pair in codes if isinstance(pair, tuple) and language in pair for code in pair}
    similar = frozenset(member for group in CONFUSABLE.values() if label in group for member in group)
    return similar - run | pairs | {label}, run


def _leads(words: str, language: str, codes: Alternatives) -> bool:
    scores = _scores(words)
    margins = SURE_MARGINS if _size(words) >= SURE_WINDOW else SMALL_MARGINS
    alike, run = _alike(language, codes)
    expected = max(scores[label] for label in alike if label in scores)
    # The scores are sorted: the first language outside the run is the best of those.
    outside = next(score for label, score in scores.items() if label not in alike and label not in run)
    inside = max((scores[label] for label in run - alike if label in scores), default=-float("inf"))
    return expected >= max(outside - margins.outside, inside - margins.run)


def _cld2_agrees(words: str, language: str, codes: Alternatives) -> bool:
    """Whether CLD2 gives `language`, or no label for a short text without English words."""
    label = _cld2_label(words)
    unlabelled = label == "" and _size(words) < SURE_WINDOW and not has_english(words, language)
    return unlabelled or label in _alike(language, codes)[0]


def _foreign_words(words: str, language: str) -> set[str]:
    """The different words in scripts that the language does not use, mostly names and brands."""
    return set(_WORDS.findall(script_pattern(LANGUAGES[language].scripts).sub(" ", words)))


def _own_script(letters: str, language: str) -> str:
    return "".join(script_pattern(LANGUAGES[language].scripts).findall(letters))


def _size(words: str) -> int:
    """Number of letters of `words`, weighted as in language_share."""
    letters = letters_of(words)
    if letters.isascii():
        return len(letters)
    return len(letters) + sum(weight * len(pattern.findall(letters)) for pattern, weight in _EXTRA_WEIGHT)


def _identify(words: str, languages: tuple[str, ...]) -> str | None:
    letters = letters_of(words)
    if len(letters) < MIN_LETTERS_SCRIPT:
        return None
    candidates = _by_script(letters, languages)
    if len(candidates) == 1:
        return candidates[0] if len(letters) >= _letters_needed(candidates[0], languages, letters) else None
    if not candidates or len(letters) < MIN_LETTERS:
        return None
    scores = _scores(words)
    labels = {code: LANGUAGES[code].label for code in candidates}
    if (cld2 := _cld2_label(words)) in labels.values() and any(label not in scores for label in labels.values()):
        return next(code for code, label in labels.items() if label == cld2)
    scored = [code for code, label in labels.items() if label in scores]
    return max(scored, key=lambda code: scores[labels[code]], default=None)


def _by_script(letters: str, languages: tuple[str, ...]) -> list[str]:
    """The languages with the most letters in their scripts, if these are at least half of the letters."""
    counts = {code: len(_own_script(letters, code)) for code in languages}
    best = max(counts.values())
    candidates = [code for code in languages if counts[code] == best and 2 * best >= len(letters)]
    if "ja" in candidates and len(candidates) > 1:
        # Han letters are counted for Chinese and Japanese; only Japanese has kana.
        kana = script_pattern(_KANA).search(letters)
        candidates = ["ja"] if kana else [code for code in candidates if code != "ja"]
    return candidates


def _letters_needed(code: str, languages: Alternatives, letters: str) -> int:
    """Letters needed to identify `code` by its script: few for a script of no other language of the run (kana are only
    Japanese), many for the Latin script, which any language may borrow."""
    scripts = set(LANGUAGES[code].scripts)
    if "Latn" in scripts:
        return MIN_LETTERS
    others = [other for other in languages if isinstance(other, str) and other != code]
    shared = any(scripts & set(LANGUAGES[other].scripts) for other in others)
    if not shared or (code == "ja" and script_pattern(_KANA).search(letters)):
        return MIN_LETTERS_SCRIPT
    return MIN_LETTERS_HAN if "Hani" in scripts else MIN_LETTERS


def _windows(lines: Sequence[str]) -> list[str]:
    """Sentences; long ones are cut into even pieces of about WINDOW letters, short ones joined to their predecessor."""
    pieces = [piece for line in lines for sentence in _SENTENCE_END.split(line) for piece in _even_pieces(sentence)]
    windows: list[list[str]] = []
    sizes: list[int] = []
    for piece in pieces:
        size = _size(piece)
        if windows and (sizes[-1] < SMALL_WINDOW or size < SMALL_WINDOW // 2):
            windows[-1].append(piece)
            sizes[-1] += size
        else:
            windows.append([piece])
            sizes.append(size)
    if len(windows) > 1 and sizes[-1] < SMALL_WINDOW:
        last = windows.pop()
        windows[-1] += last
    return [" ".join(window) for window in windows]


def _even_pieces(sentence: str) -> list[str]:
    """`sentence` cut between words, or between characters if it has few spaces."""
    count = round(_size(sentence) / WINDOW)
    if count < 2:
        return [sentence] if sentence else []
    words, space = (sentence.split(), " ") if sentence.count(" ") >= 2 * count else (sentence, "")
    edges = [round(len(words) * part / count) for part in range(count + 1)]
    return [space.join(words[start:end]) for start, end in zip(edges, edges[1:], strict=False)]


@functools.lru_cache(maxsize=4096)
def _scores(words: str) -> dict[str, float]:
    """Label -> log-likelihood of `words`, up to a constant, for each language of the classifier; the best first."""
    return dict(_classifier().rank(words))


@functools.cache
def _classifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)


@functools.lru_cache(maxsize=4096)
def _cld2_label(words: str) -> str:
    """CLD2's label of `words`, "" if it gives none."""
    import pycld2

    try:
        label = pycld2.detect(words, isPlainText=True)[2][0][1]
    except pycld2.error:
        return ""
    return "" if label == "un" else label


@functools.cache
def _cld2_labels() -> frozenset[str]:
    import pycld2

    names = dict(pycld2.LANGUAGES)
    return frozenset(names[name] for name in pycld2.DETECTED_LANGUAGES)
