"""Normalisation of disguised letters: circled, full-width, mathematical, look-alike and invisible characters."""

import re
import unicodedata

FORMAT = re.compile("[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
                    "\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff]")  # fmt: skip
"""Invisible characters: zero-width ones, direction marks, variation selectors, tags."""
_DISGUISED = re.compile(
    "[\u02b0-\u02b8\u02e0-\u02e4\u1d00-\u1dbf\u2071\u207f\u2090-\u209c\u2100-\u214f\u249c-\u24e9\ua730-\ua7ff\uff21-\uff3a"
    "\uff41-\uff5a\U0001d400-\U0001d7cb\U0001f110-\U0001f189\U0001f1e6-\U0001f1ff]"
)
_BOXED_LETTERS = (0x1F150, 0x1F170, 0x1F1E6)
"""First letters of the alphabets that Unicode does not decompose: negative circled, negative squared, regional."""
_SMALL_CAPITALS = str.maketrans("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘꞯʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnopqrstuvwyz")
_LOOKALIKES = str.maketrans(
    "аеорсухіјѕԁԛԝһкмтнвАВЕКМНОРСТУХІЈЅԚԜαεικνορτυχΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
    "aeopcyxijsdqwhkmthbABEKMHOPCTYXIJSQWaeiknoptuxABEZHIKMNOPTYX",
)
_WORD = re.compile(r"[^\W\d_]+")
_LATIN, _CYRILLIC_OR_GREEK = re.compile("[A-Za-z]"), re.compile("[\u0370-\u03ff\u0400-\u052f]")
_MARK = re.compile("(?<=[A-Za-z\u00c0-\u024f\u1e00-\u1eff])[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u20d0-\u20ff]+")
_SPELLED = re.compile(r"(?<![^\W_])[A-Za-z](?:[ \u00a0.\u00b7_-][A-Za-z]){4,}(?![^\W_])")


def fold_letters(text: str) -> str:
    """`text` with disguised letters in their plain form and without invisible characters; other text is unchanged.

    Cyrillic and Greek look-alikes in Latin words become Latin, marks without a composed letter are removed from Latin
    letters, and words spelled letter by letter are joined.
    """
    if not text.isascii():
        text = _DISGUISED.sub(_plain_letter, FORMAT.sub("", text)).translate(_SMALL_CAPITALS)
        if _CYRILLIC_OR_GREEK.search(text) and _LATIN.search(text):
            text = _WORD.sub(_one_script, text)
        text = _MARK.sub("", unicodedata.normalize("NFC", text))
    return _SPELLED.sub(lambda match: re.sub("[^A-Za-z]", "", match.group()), text)


def _plain_letter(match: re.Match) -> str:
    letter = match.group()
    for first in _BOXED_LETTERS:
        if 0 <= ord(letter) - first < 26:
            return chr(ord("a") + ord(letter) - first)
    return unicodedata.normalize("NFKC", letter)


def _one_script(match: re.Match) -> str:
    word = match.group()
    return word.translate(_LOOKALIKES) if _LATIN.search(word) and _CYRILLIC_OR_GREEK.search(word) else word
