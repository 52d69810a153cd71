"""The sentences of the quickstart task in eight languages, read from quickstart_text.json; our own wording.

No native speaker has reviewed them: they serve to show a mechanism and are no benchmark. These
rules keep them grammatical:

* a name is repeated instead of a pronoun, so no language asks for a gender;
* no count is 1, 21, 31, ... (agreement in es and de);
* the Swahili nouns are of classes 9 and 10 (and `pakiti`), where numerals take no prefix;
* zh and th use the classifier of each noun, zh says 两 for two before it; bn puts -টি behind every count;
* German wording avoids the dative plural; the Spanish "how many" agrees with the noun ({H});
* zh and th write no space between number word and classifier, but one on each side of digits.

Slots: {N} name, {I} item, {C} classifier, {H} "how many" (es), {a} {b} {c} operands, {e1} {e2} equations.
`text/number_words.json` holds the number words 0 to 99, cut from lists derived from the Unicode CLDR rule-based number
formats (Unicode License v3) and, for bn, indic-numtowords (MIT); nine bn words were changed to the modern spelling.
"""

import json
from pathlib import Path

_TABLES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))

LANGUAGES = ("en", "es", "de", "sw", "id", "zh", "th", "bn")
FAMILIES = ("add", "sub", "mul", "div", "addsub", "muladd")

NAMES, ITEMS, CLASSIFIERS = _TABLES["names"], _TABLES["items"], _TABLES["classifiers"]
"""Language -> names, items, and the classifiers of the items (zh, th)."""
HOW_MANY = _TABLES["how_many"]
"""Language -> "how many" for each item (es)."""
QUESTIONS, STEPS = _TABLES["questions"], _TABLES["steps"]
"""Family -> language -> the question, and the first sentence of a one-step response, which the equation follows."""
TWO_STEPS, FULL_STOP = _TABLES["two_steps"], _TABLES["full_stop"]
"""Language -> the reasoning of a two-step response, and the full stop."""

THAI_NUMBER_PARTS = ("หนึ่ง", "สอง", "สาม", "สี่", "ห้า", "หก", "เจ็ด", "แปด", "เก้า", "สิบ", "เอ็ด", "ยี่")
"""Kept apart by the tokenizer, as the zh numerals are: nothing separates them from their neighbours."""

BENGALI_COUNT_SUFFIX = "টি"
