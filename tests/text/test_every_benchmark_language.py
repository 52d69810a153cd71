"""Each language of the benchmarks has an entry: prompts, answers, ids, a translator's code; what is general is said."""

import pytest

from pbrl_jax.data.sources.common import language_of, prompt_id
from pbrl_jax.eval.benchmarks import BENCHMARKS
from pbrl_jax.eval.benchmarks.common import known_language
from pbrl_jax.text.answers import extract_answer
from pbrl_jax.text.languages import LANGUAGES, OTHER_CODES, answer_sentence, fallback_notes, known_code
from pbrl_jax.text.prompts import chat_messages, prompt_text

NAMED = ("mmlu-prox", "afrimgsm", "belebele", "global-mmlu", "mgsm", "msvamp", "polymath-low", "include")


@pytest.mark.parametrize("name", [name for name in NAMED if name in BENCHMARKS])
def test_every_language_is_known(name):
    codes = list(BENCHMARKS[name].languages)
    lacking = [code for code in codes if known_code(code) is None]
    assert not lacking if name != "include" else len(lacking) < len(codes) / 2
    for code in codes:
        ours = known_code(code)
        if ours is None:
            continue
        assert known_language(code) == ours and language_of(prompt_id(5, ours)) == ours
        assert extract_answer(answer_sentence("1234", ours), ours) == "1234"
        assert prompt_text("?", ours, "base").startswith(LANGUAGES[ours].ask[0])
        assert all(chat_messages("?", ours, style) for style in ("chat", "chat_boxed", "chat_tags"))


def test_the_data_sets_names_lead_to_our_codes():
    assert [known_code(code) for code in ("afr_Latn", "gaz_Latn", "zho_Hant", "sw", "qq")] == [
        "af", "om", "zho_Hant", "sw", None,
    ]  # fmt: skip
    written = {"Swahili": "sw", "swh": "sw", "sw_KE": "sw", "SW": "sw", "zh-CN": "zh", "zh-Hant-TW": None, "zh-TW":
               "zho_Hant", "es-419": "es", "en-US": "en", "sr-Latn": None, "english ": "en", "": None}  # fmt: skip
    assert {text: known_code(text) for text in written} == written
    others = {"swa": "sw", "ara": "ar", "cmn": "zh", "msa_Latn": None, "nb": "no", "nb-NO": "no", "iw": "he",
              "ger": "de", "orm": "om", "Farsi": "fa", "Mandarin": "zh", "in": "id"}  # fmt: skip
    assert {text: known_code(text) for text in others} == others, "codes of AfriMGSM, of bibliographies, and older ones"
    assert {code for code in OTHER_CODES.split()[1::2]} <= LANGUAGES.keys()
    assert not set(OTHER_CODES.split()[::2]) & LANGUAGES.keys()
    assert len({entry.nllb for entry in LANGUAGES.values()}) >= len(LANGUAGES) - 1, "fil and tl are one"


def test_what_is_general_is_said():
    assert fallback_notes(["sw", "de"]) == []
    notes = fallback_notes(["sw", "cs", "kac"])
    assert len(notes) == 2 and "Jingpho (kac)" in notes[1] and "\\boxed{}" in notes[1] and "English" in notes[1]
    assert answer_sentence("7", "kac") == "\\boxed{7}"
