"""The language gate on text as models write it: English in any wrapping is seen, and right replies pass."""

import pytest
from tiny_world import problem_prompts, reward_inputs

from pbrl_jax.config.tree import RewardConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.rewards.inputs import response_texts
from pbrl_jax.rewards.language import make_gate, response_share
from pbrl_jax.text.langid import RIGHT_SHARE, check_identifiable, identifier_of, is_right_language
from pbrl_jax.text.languages import LANGUAGES, answer_sentence
from pbrl_jax.text.normalise import fold_letters
from pbrl_jax.text.words import plain_words

ENGLISH = (
    "Amina bakes forty loaves every morning. She keeps six of them for her family, and sells the others at the market "
    "for three coins each."
)
NATIVE = {
    "sw": "Amina huoka mikate arobaini kila asubuhi. Anabakiza sita kwa ajili ya familia yake na kuuza mingine sokoni.",
    "de": "Amina backt jeden Morgen vierzig Brote. Sechs behält sie für ihre Familie, die anderen verkauft sie.",
    "zh": "阿米娜每天早上烤四十个面包。她给家人留六个，其余的拿到市场上去卖。",
    "th": "อามีนาอบขนมปังสี่สิบก้อนทุกเช้า เธอเก็บไว้ให้ครอบครัวหกก้อน แล้วขายที่เหลือในตลาด",
    "hi": "अमीना हर सुबह चालीस रोटियाँ बनाती है। वह छह अपने परिवार के लिए रखती है और बाकी बाज़ार में बेचती है।",
    "ru": "Амина каждое утро печёт сорок хлебов. Шесть она оставляет семье, а остальные продаёт на рынке.",
}
MATHEMATICAL = {c: chr(0x1D41A + ord(c) - 97) for c in map(chr, range(97, 123))}
WRAPPINGS = {
    "dollars": lambda t: f"${t}$",
    "brackets": lambda t: f"\\[{t}\\]",
    "text": lambda t: "\\[" + " ".join(f"\\text{{{word}}}" for word in t.split()) + "\\]",
    "commands": lambda t: " ".join("\\" + word for word in t.replace(".", "").replace(",", "").split()),
    "code": lambda t: f"```python\n{t}\n```",
    "ticks": lambda t: f"`{t}`",
    "tags": lambda t: " ".join(f"<{word}>" for word in t.split()),
    "link": lambda t: "https://" + "_".join(t.split()),
    "circles": lambda t: "".join(chr(0x24D0 + ord(c) - 97) if "a" <= c <= "z" else c for c in t.lower()),
    "squares": lambda t: "".join(chr(0x1F170 + ord(c) - 97) if "a" <= c <= "z" else c for c in t.lower()),
    "full width": lambda t: "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in t),
    "mathematical": lambda t: "".join(MATHEMATICAL.get(c, c) for c in t),
    "zero width": lambda t: "\u200b".join(t),
    "struck": lambda t: "".join(c + "\u0336" if c.isalpha() else c for c in t),
    "look-alikes": lambda t: t.translate(str.maketrans("aeopc", "аеорс")),
    "special tokens": lambda t: " ".join(f"<|{word.strip('.,').lower()}|>" for word in t.split()),
    "environments": lambda t: " ".join(f"\\begin{{{word.strip('.,').lower()}}}" for word in t.split()),
    "fences": lambda t: "\n".join(f"```{word.strip('.,').lower()}" for word in t.split()) + "\n",
    "spelled": lambda t: "  ".join(" ".join(word) for word in t.split()),
}


@pytest.mark.parametrize("code", NATIVE)
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrapped_english_is_english(code, wrapping):
    wrapped = WRAPPINGS[wrapping](ENGLISH)
    for text in (f"{wrapped} {answer_sentence('102', code)}", f"{wrapped} \\boxed{{102}}", wrapped):
        assert response_share(text, code, ("en", code)) < RIGHT_SHARE, text
    mixed = f"{NATIVE[code]} {wrapped} {answer_sentence('102', code)}"
    assert response_share(mixed, code, ("en", code)) < RIGHT_SHARE, mixed


@pytest.mark.parametrize("code", [code for code in NATIVE if "Latn" in LANGUAGES[code].scripts])
@pytest.mark.parametrize("case", [str.lower, str.title])
def test_words_of_english_between_those_of_the_language(code, case):
    """A classifier takes the mixture for the language, and capitalised words for names; an encoder reads both."""
    english = f"{ENGLISH} There were forty loaves, from which she makes dollars for each of the others, and then more."
    pairs = zip(f"{NATIVE[code]} {NATIVE[code]}".split(), case(english).split(), strict=False)
    mixed = " ".join(word for pair in pairs for word in pair)
    assert response_share(f"{mixed}. {answer_sentence('102', code)}", code, ("en", code)) < RIGHT_SHARE, mixed
    names = f"{NATIVE[code]} Janet, Kylar, Toulouse, Marissa, Weng, Natalia. {NATIVE[code]}"
    assert response_share(names, code, ("en", code)) >= RIGHT_SHARE


@pytest.mark.parametrize(
    ("code", "text", "right"),
    [
        ("fr", "Il reste 9 œufs.\nRéponse : 18 dollars.", True),
        ("nl", "Antwoord: 18 dollars", True),
        ("sv", "Svar: 3 problem", True),
        ("da", "Vi kan have 5.", True),
        ("fr", "Answer: 18 dollars", False),
        ("sv", "The answer is 3", False),
    ],
)
def test_words_that_english_shares_with_a_language(code, text, right):
    assert (response_share(text, code, ("en", code)) >= RIGHT_SHARE) is right


@pytest.mark.parametrize("code", [code for code in NATIVE if "Latn" not in LANGUAGES[code].scripts])
def test_an_english_tail_is_seen_where_sentences_end_without_a_sign(code):
    """Thai writes no full stop; the tail is under a fifth of the letters. Names and units behind it are none."""
    body = NATIVE[code].rstrip(".。।")
    for tail in ("The answer is 102.", "so the total is 102"):
        assert response_share(f"{body} 34 * 3 = 102 {tail}", code, ("en", code)) < RIGHT_SHARE
    for tail in ("102 km/h", "Amina", "102 kg"):
        assert response_share(f"{body} 34 * 3 = {tail}", code, ("en", code)) >= RIGHT_SHARE


@pytest.mark.parametrize("code", NATIVE)
def test_an_english_answer_in_a_box_is_seen(code):
    text = f"{NATIVE[code]} \\boxed{{\\text{{She sells them for one hundred and two coins}}}}"
    assert response_share(text, code, ("en", code)) < RIGHT_SHARE


@pytest.mark.parametrize("code", NATIVE)
@pytest.mark.parametrize("answer", ["102", "(C)", "C", "34 km/h", "12 cm²", "102 USD", "x = 102", "$34\\text{ kg}$"])
def test_units_options_and_variables_are_neutral(code, answer):
    text = f"{NATIVE[code]} $34 \\times 3 = 102$\n{answer_sentence(answer, code)}"
    assert response_share(text, code, ("en", code)) >= RIGHT_SHARE


def test_names_are_neutral_and_prose_with_capitals_is_not():
    assert response_share(f"{NATIVE['hi']} उत्तर Amina है।", "hi", ("en", "hi")) >= RIGHT_SHARE
    assert response_share("Amina Keeps Six Loaves Today उत्तर 102 है।", "hi", ("en", "hi")) < RIGHT_SHARE
    nigerian = "Chukwuemeka and Oluwaseun bought five mangoes from Ngozi, and then they gave two of them to Adaeze."
    assert response_share(nigerian, "en", ("en", "yo", "ig")) >= RIGHT_SHARE
    indian = "Venkateswarlu alinunua maembe matano kutoka kwa Lakshminarayana na kumpa Subrahmanyam mawili."
    assert response_share(indian, "sw", ("en", "sw", "te")) >= RIGHT_SHARE


@pytest.mark.parametrize("text", ["the 12", "She 12", "и 12", "这 12 个"])
def test_what_is_too_short_is_no_pass_in_another_script_or_in_english(text):
    assert response_share(text, "sw", ("en", "sw")) < RIGHT_SHARE
    assert response_share("12", "sw", ("en", "sw")) == response_share("Jibu 12", "sw", ("en", "sw")) == 1.0


def test_the_encoder_reads_the_letters_that_the_gate_judged():
    circled = WRAPPINGS["circles"]("sold") + " \u200bna 5 m²"
    assert fold_letters(circled) == "sold na 5 m²" and plain_words(circled) == "sold na"
    inputs = reward_inputs(problem_prompts(1, ("sw",)), [circled])
    assert response_texts(inputs, "whole") == {"whole": ["sold na 5 m²"]}
    for code, native in NATIVE.items():
        assert fold_letters(native) == native, code


def test_languages_that_no_identifier_knows_have_a_script_or_are_refused():
    assert identifier_of("sw") == "py3langid" and identifier_of("wo") == identifier_of("ny") == "cld2"
    assert identifier_of("vai") == "script" and identifier_of("ee") == ""
    check_identifiable(("vai", "wo", "yo"))
    with pytest.raises(ConfigError, match=r"Ewe \(ee\).*tokens"):
        make_gate(RewardConfig(language_gate="hard"), ("en", "ee"), None)
    assert make_gate(RewardConfig(language_gate="off"), ("en", "ee"), None)
    assert is_right_language(ENGLISH, "ee", ("en", "ee")) is None
    vai = "ꕉꕜꕮ ꔔꘋ ꖸ ꔰ ꗋꘋ ꕮꕨ ꔔꘋ ꖸ ꕎ ꕉꖸꕊ ꕴꖃ ꕃꔤꘂ"
    assert response_share(vai, "vai", ("en", "vai")) == 1.0
    assert response_share(ENGLISH, "vai", ("en", "vai")) == 0.0


OTHERS = {
    "wo": "Xale yi ñëw nañu lekkool ci suba, ñu jàng xayma ba noppi ñibbi seen kër.",
    "tw": "Mmofra no kɔɔ sukuu anɔpa na wɔsuaa nkontabuo ansa na wɔreba fie.",
    "ny": "Ana anapita kusukulu m'mawa ndipo anaphunzira masamu asanabwere kunyumba.",
    "ha": "Yara sun tafi makaranta da safe suka koyi lissafi kafin su dawo gida.",
    "ig": "Ụmụaka gara ụlọ akwụkwọ n'ụtụtụ mụta mgbakọ tupu ha alọta.",
    "yo": "Àwọn ọmọ lọ sí ilé ìwé ní òwúrọ̀, wọ́n sì kọ́ ìṣirò kí wọ́n tó padà sílé.",
    "zu": "Izingane zaya esikoleni ekuseni zafunda izibalo ngaphambi kokubuyela ekhaya.",
    "sn": "Vana vakaenda kuchikoro mangwanani vakadzidza masvomhu vasati vadzokera kumba.",
    "st": "Bana ba ile sekolong hoseng mme ba ithuta dipalo pele ba kgutlela hae.",
    "rw": "Abana bagiye ku ishuri mu gitondo biga imibare mbere yo gutaha.",
    "ln": "Bana bakendaki na eteyelo na ntongo mpe bayekolaki matematiki liboso ya kozonga na ndako.",
    "lg": "Abaana baagenda ku ssomero ku makya ne basoma okubala nga tebannadda waka.",
    "om": "Ijoolleen ganama mana barumsaa deemanii herrega baratan.",
    "uk": "Діти пішли вранці до школи, вивчили математику і повернулися додому.",
    "ur": "بچے صبح اسکول گئے، حساب سیکھا اور پھر گھر واپس آئے۔",
    "mr": "मुले सकाळी शाळेत गेली, गणित शिकली आणि मग घरी परत आली.",
    "ne": "केटाकेटीहरू बिहान विद्यालय गए, गणित सिके र घर फर्किए।",
    "am": "ልጆቹ ጠዋት ወደ ትምህርት ቤት ሄዱ፣ ሒሳብ ተማሩ እና ወደ ቤት ተመለሱ።",
}
"""Our own sentences: "The children went to school in the morning, learned sums and came home." """


@pytest.mark.parametrize("code", OTHERS)
def test_further_languages_pass_themselves_and_no_english(code):
    run = ("en", "sw", code)
    assert response_share(f"{OTHERS[code]} {answer_sentence('12', code)}", code, run) >= RIGHT_SHARE
    assert response_share(f"{ENGLISH} {answer_sentence('12', code)}", code, run) < RIGHT_SHARE
    assert response_share(f"{NATIVE['sw']} {answer_sentence('12', code)}", code, run) < RIGHT_SHARE


def test_every_entry_is_gated_or_refused():
    kinds = {code: identifier_of(code) for code in LANGUAGES}
    assert sum(kind != "" for kind in kinds.values()) > 110
    assert all(set(LANGUAGES[code].scripts) & {"Latn", "Arab"} for code, kind in kinds.items() if kind == "")
