r"""The words of a text, in prose, formulas, code, tags and links.

Parts without a language are left out: numbers, operators, LaTeX commands, known tags, single consonants (variables,
options), units after a number, and in other scripts units, names of functions and a few names. A word in `\text{}`,
between dollars, in a tag or in code counts: an encoder reads it, so the language gate judges it.
"""

import functools
import re

from pbrl_jax.text.languages import letters_of, script_pattern
from pbrl_jax.text.normalise import fold_letters
from pbrl_jax.text.values import UNITS

COMMANDS = frozenset(
    "frac dfrac tfrac cfrac sqrt times cdot cdots ldots dots div pm mp le leq leqslant ge geq geqslant ne neq "
    "approx to equiv sim infty text textbf textit textrm textup mathrm mathbf mathit mathsf mathbb mathcal "
    "boldsymbol mbox operatorname boxed fbox left right big Big bigg Bigg quad qquad displaystyle sum prod int "
    "iint oiint oint lim sup inf sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp max min "
    "gcd lcm mod pmod bmod binom choose circ degree angle triangle perp parallel partial nabla ell odot lvert "
    "rvert lVert rVert pi theta alpha beta gamma delta epsilon varepsilon zeta eta iota kappa lambda mu nu xi rho "
    "sigma tau phi upsilon varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega in notin "
    "subset subseteq cup cap emptyset setminus forall exists land lor neg implies iff Rightarrow Leftarrow "
    "rightarrow leftarrow mapsto cancel therefore because overline overrightarrow underline underbrace overbrace "
    "hat widehat bar vec tilde hline tag label lfloor rfloor lceil rceil mid vert Vert color textcolor overset "
    "underset substack allowbreak prime star ast hspace vspace newline limits not begin end".split()
)
"""LaTeX commands, which are not words. Up to MOST_UNKNOWN other commands are not words either."""
TELLING_ENGLISH = frozenset(
    "the and were with from that this there then they their she you have each which when how answer because therefore "
    "since sold bought eats eggs dollars gives makes number where these would should question problem equals "
    "yes true".split()
)
"""Frequent words of English worked solutions that are rare in other languages in Latin letters."""
ENGLISH_ELSEWHERE = {
    code: frozenset(words.split())
    for code, words in {
        "fr": "dollars question", "nl": "dollars problem", "de": "dollars problem these", "af": "problem",
        "sv": "problem and", "da": "problem have and", "no": "problem have and", "nn": "problem have and",
        "pl": "problem", "cs": "problem", "sk": "problem", "sl": "problem", "hr": "problem", "bs": "problem",
        "tr": "problem", "az": "problem", "ro": "sold",
    }.items()
}  # fmt: skip
"""Words of TELLING_ENGLISH that are ordinary words of another language."""
TELLING_RATE, FEWEST_TELLING = 0.18, 3
"""Share of TELLING_ENGLISH in English worked solutions (GSM8K), and how many make a text partly English."""
ENGLISH = TELLING_ENGLISH | frozenset(
    "them her your many much buys who what why those into out our we it its of is be been are was after before first "
    "next finally step solution so thus hence let find total left remaining more less than per day every by for in on "
    "at to has had he his can will equal two three four five six seven eight nine ten".split()
)
"""Frequent words of English, none of which is a name."""
_SPECIAL_TOKENS = (
    "im_start im_end im_sep endoftext startoftext begin_of_text end_of_text start_header_id end_header_id eot_id "
    "eom_id end_of_turn start_of_turn system user assistant end pad"
).replace(" ", "|")
_TAGS = re.compile(
    rf"</?(?:think|answer|b|i|u|em|strong|br|p|sub|sup|ul|ol|li)\s*/?>|<\|(?:{_SPECIAL_TOKENS})\|>", re.IGNORECASE
)
_MATHS = re.compile(r"\$\$.+?\$\$|\$[^$\n]{1,200}?\$|\\\[.{1,1000}?\\\]|\\\(.{1,1000}?\\\)", re.DOTALL)
_SHORT = re.compile(r"(?<![^\W\d_\\])(?:[A-Za-z]{1,3}|[α-ωΑ-Ω]+)(?![^\W\d_])")
_CAPITALS = re.compile(r"(?<![^\W\d_])[A-Z]{2,4}(?![^\W\d_])")
_FENCED = "python|py|latex|tex|math|text|txt|plaintext|markdown|md|json|bash|sh|c|cpp|java|js"
_FENCE = re.compile(rf"```(?:(?:{_FENCED})(?=\s))?")
_LINK = re.compile(r"https?://(?:www\.)?|www\.")
_ENVIRONMENTS = (
    "align aligned alignat alignedat array bmatrix Bmatrix cases center dcases document enumerate eqnarray equation "
    "flalign gather gathered itemize matrix multline pmatrix smallmatrix split tabular vmatrix Vmatrix"
).replace(" ", "|")
_COMMAND = re.compile(rf"\\(?:begin|end)\s*\{{(?:{_ENVIRONMENTS})\*?\}}|\\([A-Za-z]+)\*?")
_UNIT = "|".join(sorted(map(re.escape, UNITS), key=len, reverse=True))
_UNITS = re.compile(rf"(?<=\d)[\s{{(]*(?:{_UNIT})(?:\s?[/·]\s?(?:{_UNIT}))?(?:\^?[23²³])?(?![A-Za-z])")
_VARIABLE = re.compile(r"(?<![^\W\d_])(?:[b-hj-np-tv-xzB-HJ-NP-TV-XZ]|[α-ωΑ-Ω])(?![^\W_'’])")
_FUNCTIONS = frozenset("sin cos tan log ln exp mod max min lim gcd lcm arctan".split())
_FUNCTION = re.compile(rf"(?<![^\W_])(?:{'|'.join(_FUNCTIONS)})(?![^\W_])")
_NOT_WORDS = re.compile(r"[\d²³¹⁰-₉¼-¾=+*/<>^_#{}\[\]|~%&@$\\`()-]+")
_FOREIGN = re.compile(r"[^\W\d_]+(?:[ '’.-]{1,2}[^\W\d_]+)*")
_WORD = re.compile(r"[^\W\d_]+")
MOST_UNKNOWN = 3
"""Largest number of different commands outside COMMANDS that are not words; with more of them, all are words."""
MOST_CAPITALISED = 4
"""Largest number of different capitalised words that are ignored in a text in Latin letters."""
MOST_NAMES, LONGEST_NAME = 3, 3
"""Largest number of different names in another script that are ignored, and of words in a name."""
FREE_LETTERS = 12
"""Total letters of ignored names, or as many as the text has letters in its own scripts, if that is more."""


def plain_words(text: str) -> str:
    """The words of `text`, separated by single spaces."""
    return " ".join(word_lines(text))


@functools.lru_cache(maxsize=1024)
def word_lines(text: str) -> tuple[str, ...]:
    """The words of each line of `text` that has any."""
    text = fold_letters(text)
    for pattern in (_FENCE, _TAGS, _LINK):
        text = pattern.sub(" ", text)
    text = _MATHS.sub(lambda match: _SHORT.sub(_unless_english, match.group()), _without_commands(text))
    if not text.isupper():
        text = _CAPITALS.sub(_unless_english, text)
    for pattern in (_UNITS, _FUNCTION, _VARIABLE, _NOT_WORDS):
        text = pattern.sub(" ", text)
    return tuple(" ".join(line.split()) for line in text.splitlines() if line.strip())


def _without_commands(text: str) -> str:
    unknown = {name for name in _COMMAND.findall(text) if name and name not in COMMANDS}
    words = unknown if len(unknown) > MOST_UNKNOWN or unknown & ENGLISH else ()
    return _COMMAND.sub(lambda match: f" {match[1]} " if match[1] in words else " ", text)


def _unless_english(match: re.Match) -> str:
    """The match if it is an English word, also between dollars; else " ", as of symbols and products (AB, dx)."""
    return match.group() if match.group().lower() in ENGLISH and len(match.group()) > 1 else " "


@functools.lru_cache(maxsize=1024)
def judged_lines(text: str, scripts: tuple[str, ...]) -> tuple[str, ...]:
    """`word_lines` for a language in `scripts`, without units, functions, letters and names in another script."""
    lines = word_lines(text)
    if "Latn" in scripts:
        return lines
    own_script = script_pattern(scripts)
    names: set[str] = set()
    letters = len(own_script.findall(" ".join(lines)))
    most = max(FREE_LETTERS, letters) if letters else 0

    def kept(match: re.Match) -> str:
        run = match.group()
        if own_script.search(run):
            return _WORD.sub(lambda word: word.group() if own_script.search(word.group()) else kept(word), run)
        words = [w for w in _WORD.findall(run) if len(w) > 1 and w not in UNITS and w.lower() not in _FUNCTIONS]
        if not words:
            return " "
        name = " ".join(words)
        if len(words) <= LONGEST_NAME and all(is_name(word) for word in words):
            if name in names or (len(names) < MOST_NAMES and sum(map(len, names)) + len(name) <= most):
                names.add(name)
                return " "
        return name

    judged = [" ".join(_FOREIGN.sub(kept, line).split()) for line in lines]
    return tuple(line for line in judged if letters_of(line))


def is_name(word: str) -> bool:
    """Whether a word is capitalised and not a frequent word of English."""
    return word[0].isupper() and word.lower() not in ENGLISH


def without_names(words: str, names: set[str]) -> str:
    """`words` without capitalised ones inside sentences, of which a text has at most MOST_CAPITALISED different ones.

    Args:
      names: those of the text so far; the new ones are added.
    """
    kept, inside = [], False
    for word in words.split():
        bare = word.strip(".,;:!?\"'’")
        if inside and bare and is_name(bare) and (bare in names or len(names) < MOST_CAPITALISED):
            names.add(bare)
        else:
            kept.append(word)
        inside = not word.endswith((".", "!", "?", ":"))
    return " ".join(kept)


def has_english(words: str, language: str) -> bool:
    """Whether one of `words` is in TELLING_ENGLISH, and no word of `language` too."""
    return bool(_telling(words, language))


def english_share(words: str, language: str) -> float:
    """Estimated share of English words in a text of another language, from those in TELLING_ENGLISH: a classifier of
    languages does not see words of two languages in turn. 0 for fewer than FEWEST_TELLING, or one again and again."""
    telling = _telling(words, language)
    if len(telling) < FEWEST_TELLING or len(set(telling)) < 2:
        return 0.0
    return min(1.0, len(telling) / TELLING_RATE / len(_WORD.findall(words)))


def _telling(words: str, language: str) -> list[str]:
    telling = TELLING_ENGLISH - ENGLISH_ELSEWHERE.get(language, frozenset())
    return [word for word in _WORD.findall(words.lower()) if word in telling]
