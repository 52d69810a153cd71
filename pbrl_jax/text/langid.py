"""Which language a text is written in.

First the script, which settles most pairs and cannot be fooled; then a naive Bayes classifier over byte n-grams
(py3langid) with all the languages it knows, so that a drift to a language outside the run is seen. Languages that it
does not know are identified by CLD2, and what neither knows by its script where no other language shares that
(`check_identifiable`). Inside the sets of CONFUSABLE no identifier can be trusted: a member that the run does not use
counts as the one it does, and what a run uses is measured (pbrl_jax.text.alike). Long texts are judged in windows.
Every run of words counts, in formulas, code, tags and links as well (pbrl_jax.text.words); numbers, units, variables
and names say nothing about language.
"""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.text.languages import LANGUAGES, check_languages, letters_of, script_pattern
from pbrl_jax.text.words import has_english, judged_lines, plain_words, without_names

MIN_LETTERS = 8
"""Fewer letters than this are too few to tell two languages of one alphabet apart."""
MIN_LETTERS_HAN = 4
"""Han characters without kana, where a run has Chinese and Japanese."""
TAIL_WORDS = 3
"""Words in another script that are a sentence behind one without a full stop."""
MIN_LETTERS_SCRIPT = 2
"""Enough where the script alone decides."""
RIGHT_SHARE = 0.8  # ASSUMED: not stated in the material at hand
"""A response is in a language when at least this share of its letters is."""
WINDOW, SMALL_WINDOW, SURE_WINDOW = 60, 20, 40
"""Letters of the pieces that a text is judged in: long sentences are cut at about the first, short ones joined until
they have the second; from the third on a small lead convinces."""


Alternatives = Sequence[str | tuple[str, str]]
"""The languages of a run, and pairs of them that count as one."""


class Margins(NamedTuple):
    """Lead in log-likelihood (nats) by which a language must beat the right one: one of the run, or any other of the
    world, which is rare and so must be clearer."""

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
"""Languages that a few words cannot tell apart. A language may stand in two sets."""

_SENTENCE_END = re.compile(r"(?<=[.!?。！？।؟])\s*")
_WORDS = re.compile(r"[^\W\d_]+")
_KANA = ("Hira", "Kana")
_EXTRA_WEIGHT = ((script_pattern(("Hani",)), 2), (script_pattern(("Hang", *_KANA)), 1))


def identify_language(text: str, languages: Sequence[str] | None = None) -> str | None:
    """The language of `text`; None when it is too short, or in a script of none of the languages.

    Args:
      text: any text; formulas and numbers are ignored.
      languages: the alternatives, codes in pbrl_jax.text.languages.LANGUAGES; None: all that the classifier knows
        (codes outside LANGUAGES among them), and texts of fewer than SMALL_WINDOW letters are too short.
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
    """What identifies a language: "py3langid", "cld2", "script" (one that no other language shares), or ""."""
    label, scripts = LANGUAGES[code].label, LANGUAGES[code].scripts
    if label in _classifier().labels:
        return "py3langid"
    if label and label in _cld2_labels():
        return "cld2"
    return "" if set(scripts) & {"Latn", "Cyrl", "Arab", "Deva"} else "script"


def check_identifiable(languages: Sequence[str]) -> None:
    """Refuse languages that no identifier can tell from others (ConfigError): their gate would be open."""
    lacking = [f"{LANGUAGES[code].name} ({code})" for code in check_languages(languages) if not identifier_of(code)]
    if lacking:
        raise ConfigError(
            f"No identifier here knows {', '.join(lacking)}, whose script other languages use, too. Set "
            "reward.language_gate to tokens (with text of each language) or off, or leave the language out."
        )


def language_share(text: str, language: str, languages: Alternatives) -> float | None:
    """Share in [0, 1] of the letters of `text` that are written in `language`; None when the text is too short.

    A letter counts when it is in a script of the language and its window (a sentence, or some 60 letters of one) is
    identified as the language, or as one that cannot be told from it; there a word in a foreign script counts against
    it once, however often it stands (iPhone). `languages` are those of the run: another one of them wins a window by
    a small lead, any other language in the world by a clear one, one in a pair with `language` never. Han letters weigh
    three, kana and Hangul two: that is what they say in Latin letters. A text too short to identify that holds words of
    English has share 0.
    """
    codes = _checked((language, *languages))
    lines = judged_lines(text, LANGUAGES[language].scripts)
    words = " ".join(lines)
    letters = letters_of(words)
    if language != "en" and len(letters) < 2 * MIN_LETTERS and has_english(words):
        return 0.0
    if len(letters) < MIN_LETTERS_SCRIPT:
        return 0.0 if letters and not _own_script(letters, language) else None
    script = len(_own_script(letters, language)) / len(letters)
    if len(letters) < (_letters_needed(language, codes, letters) if script >= RIGHT_SHARE else MIN_LETTERS):
        # Too few for a classifier: only a foreign script counts against it.
        return None if script >= RIGHT_SHARE else script
    own = foreign = 0.0
    names: set[str] = set()
    for window in _windows(lines):
        inside = _size(_own_script(letters_of(window), language))
        if not _is_language(window, language, codes):
            foreign += _size(window)
            continue
        own += inside
        for word in _foreign_words(window, language) - names:
            names.add(word)
            foreign += _size(word)
    return own / (own + foreign)


def is_right_language(text: str, language: str, languages: Alternatives, share: float = RIGHT_SHARE) -> bool | None:
    """Whether `text` is written in `language`, to its end; None when it is too short, or no identifier knows that.

    At least `share` of its letters are in the language (see language_share), and its last sentence is in no other
    language of the run, nor in English.
    """
    found = language_share(text, language, languages) if identifier_of(language) else None
    return None if found is None else found >= share and not foreign_tail(text, language, languages)


@functools.lru_cache(maxsize=256)
def _checked(languages: tuple[str | tuple[str, str], ...]) -> tuple[str | tuple[str, str], ...]:
    check_languages(dict.fromkeys(code for code in languages if isinstance(code, str)))
    return tuple(dict.fromkeys(languages))


def foreign_tail(text: str, language: str, languages: Alternatives) -> bool:
    """Whether the last sentence of `text` is in another language; False where it has too few letters to tell."""
    codes = _checked((language, *languages, "en"))
    lines = judged_lines(text, LANGUAGES[language].scripts)
    sentences = [piece for piece in _SENTENCE_END.split(lines[-1]) if letters_of(piece)] if lines else []
    letters = letters_of(sentences[-1]) if sentences else ""
    if len(letters) < MIN_LETTERS:
        return False
    # Where sentences end without a sign (Thai), what follows the last letter of the own script is a sentence, too.
    rest = script_pattern(LANGUAGES[language].scripts).split(sentences[-1])[-1]
    if len(letters_of(rest)) >= MIN_LETTERS and (has_english(rest) or len(_WORDS.findall(rest)) >= TAIL_WORDS):
        return True
    own = len(_own_script(letters, language)) / len(letters)
    return own < 0.5 or not _is_language(sentences[-1], language, codes)


def _is_language(words: str, language: str, codes: Alternatives) -> bool:
    """Whether no other language leads `language` by more than its margin, with the names in `words` or without."""
    size = _size(words)
    if size < MIN_LETTERS or identifier_of(language) in ("script", ""):
        return True
    if language == "ja" and size >= SMALL_WINDOW and not script_pattern(_KANA).search(words):
        return False  # Japanese prose has kana; the classifier alone takes a short Chinese clause for it
    judge = _leads if identifier_of(language) == "py3langid" else _cld2_agrees
    if judge(words, language, codes):
        return True
    rest = without_names(words)
    return len(rest) < len(words) and _size(rest) >= max(SMALL_WINDOW, size / 2) and judge(rest, language, codes)


@functools.lru_cache(maxsize=256)
def _alike(language: str, codes: Alternatives) -> tuple[frozenset[str], frozenset[str]]:
    """(labels that count as `language`: its own, those of its pairs, and of its sets those that the run does not use;
    the run's labels)"""
    own = LANGUAGES[language].label
    run = frozenset(LANGUAGES[code].label for code in codes if isinstance(code, str))
    pairs = {LANGUAGES[code].label for pair in codes if isinstance(pair, tuple) and language in pair for code in pair}
    near = frozenset(label for group in CONFUSABLE.values() if own in group for label in group)
    return near - run | pairs | {own}, run


def _leads(words: str, language: str, codes: Alternatives) -> bool:
    known = _scores(words)
    margins = SURE_MARGINS if _size(words) >= SURE_WINDOW else SMALL_MARGINS
    alike, run = _alike(language, codes)
    own = max(known[label] for label in alike if label in known)
    # The best come first: the first outside the run is the strongest there.
    outside = next(score for label, score in known.items() if label not in alike and label not in run)
    inside = max((known[label] for label in run - alike if label in known), default=-float("inf"))
    return own >= max(outside - margins.outside, inside - margins.run)


def _cld2_agrees(words: str, language: str, codes: Alternatives) -> bool:
    """By CLD2; what it cannot name is the language where it is short and holds no English."""
    found = _cld2_label(words)
    unnamed = found == "" and _size(words) < SURE_WINDOW and not has_english(words)
    return unnamed or found in _alike(language, codes)[0]


def _foreign_words(words: str, language: str) -> set[str]:
    """The different words of `words` in scripts that the language does not use: names and brands, mostly."""
    return set(_WORDS.findall(script_pattern(LANGUAGES[language].scripts).sub(" ", words)))


def _own_script(letters: str, language: str) -> str:
    return "".join(script_pattern(LANGUAGES[language].scripts).findall(letters))


def _size(words: str) -> int:
    """Letters of `words`, in Latin letters' worth."""
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
    named = {code: LANGUAGES[code].label for code in candidates}
    if (found := _cld2_label(words)) in named.values() and any(label not in scores for label in named.values()):
        return next(code for code, label in named.items() if label == found)
    known = [code for code, label in named.items() if label in scores]
    return max(known, key=lambda code: scores[named[code]], default=None)


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


def _letters_needed(code: str, languages: Alternatives, letters: str) -> int:
    """Letters that settle `code` once the script points to it: few for a script that no other language of the run
    writes (kana are Japanese alone), many for the Latin one, which any language may borrow."""
    own = set(LANGUAGES[code].scripts)
    if "Latn" in own:
        return MIN_LETTERS
    others = [other for other in languages if isinstance(other, str) and other != code]
    shared = any(own & set(LANGUAGES[other].scripts) for other in others)
    if not shared or (code == "ja" and script_pattern(_KANA).search(letters)):
        return MIN_LETTERS_SCRIPT
    return MIN_LETTERS_HAN if "Hani" in own else MIN_LETTERS


def _windows(lines: Sequence[str]) -> list[str]:
    """Sentences; long ones in even pieces of about WINDOW letters, short ones joined to their predecessor."""
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
    """`sentence` cut between words, or between characters where it has hardly any spaces."""
    count = round(_size(sentence) / WINDOW)
    if count < 2:
        return [sentence] if sentence else []
    words, space = (sentence.split(), " ") if sentence.count(" ") >= 2 * count else (sentence, "")
    edges = [round(len(words) * part / count) for part in range(count + 1)]
    return [space.join(words[start:end]) for start, end in zip(edges, edges[1:], strict=False)]


@functools.lru_cache(maxsize=4096)
def _scores(words: str) -> dict[str, float]:
    """Log-likelihood of `words`, up to a constant, in each language of the classifier, the best first."""
    return dict(_classifier().rank(words))


@functools.cache
def _classifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)


@functools.lru_cache(maxsize=4096)
def _cld2_label(words: str) -> str:
    """CLD2's language of `words`, "" where it names none."""
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
