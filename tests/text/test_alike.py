"""Languages that cannot be told apart on a run's own questions. The sentences are ours."""

import pytest
from tiny_world import reward_inputs

from pbrl_jax import RewardConfig
from pbrl_jax.core.records import Prompt
from pbrl_jax.eval.fidelity import fidelity
from pbrl_jax.rewards.combine import gated_as_one
from pbrl_jax.rewards.language import make_gate
from pbrl_jax.text.alike import related_languages
from pbrl_jax.text.langid import is_right_language

MALAY = [
    "Ali membeli tiga buah buku dan dua batang pen. Berapa ringgit yang dia bayar?",
    "Sebuah bas membawa 40 orang penumpang. Berapa orang yang tinggal selepas 15 orang turun?",
    "Siti membuat 24 biji kek untuk jiran dan menjual separuh daripadanya. Berapa biji yang tinggal?",
    "Pak Hassan menanam 12 pokok durian di kebun. Setiap pokok memberi lima biji buah.",
    "Kereta itu bergerak sejauh 180 kilometer dalam masa tiga jam. Berapakah kelajuannya?",
    "Ibu memberi RM20 kepada Aminah. Dia membelanjakan RM8 di kedai buku semalam.",
    "Seekor kucing minum dua cawan susu sehari. Berapa cawan yang diperlukan untuk seminggu?",
    "Harga sehelai baju ialah RM35. Berapakah harga empat helai baju yang sama?",
]
INDONESIAN = [
    "Ali membeli tiga buku dan dua pulpen. Berapa rupiah yang harus dia bayar?",
    "Sebuah bus membawa 40 penumpang. Berapa orang yang tersisa setelah 15 orang turun?",
    "Siti membuat 24 kue untuk tetangga dan menjual setengahnya. Berapa kue yang tersisa?",
    "Pak Hasan menanam 12 pohon durian di kebunnya. Setiap pohon menghasilkan lima buah.",
    "Mobil itu menempuh jarak 180 kilometer dalam tiga jam. Berapa kecepatannya?",
    "Ibu memberi uang dua puluh ribu kepada Aminah karena dia rajin belajar di sekolah.",
    "Seekor kucing minum dua cangkir susu sehari. Berapa cangkir yang dibutuhkan untuk seminggu?",
    "Harga sebuah kemeja adalah 35 ribu rupiah. Berapa harga empat kemeja yang sama?",
]
SWAHILI = [
    "Ali ana vitabu vitatu na kalamu mbili. Analipa shilingi ngapi?",
    "Basi linabeba abiria 40. Wangapi wanabaki baada ya watu 15 kushuka?",
    "Siti alioka keki 24 kwa majirani na kuuza nusu yake. Zimebaki keki ngapi?",
    "Mzee Hassan alipanda miti 12 shambani. Kila mti unatoa matunda matano.",
]
ENGLISH = "He bought three books and two pens, so he has to pay for five things in the shop."
RUN = [*(("ms", text) for text in MALAY), *(("id", text) for text in INDONESIAN), *(("sw", text) for text in SWAHILI)]


def accepted(texts, code, languages):
    return sum(is_right_language(text, code, languages) is not False for text in texts)


def test_a_pair_that_cannot_be_told_apart_is_found_said_and_judged_as_one():
    """Apart, native questions fail; as one, all pass in both languages, and what is neither still fails."""
    codes = ("ms", "id", "sw", "en")
    assert accepted(MALAY, "ms", codes) <= 6
    found = related_languages(RUN)
    assert found.pairs == (("id", "ms"),)
    assert len(found.notes) == 1 and "Indonesian (id) from Malay (ms)" in found.notes[0]
    together = (*codes, *found.pairs)
    assert accepted(MALAY, "ms", together) == accepted(INDONESIAN, "id", together) == 8
    assert not accepted([ENGLISH, " ".join(SWAHILI)], "ms", together)
    assert fidelity(" ".join(MALAY), "ms", together).right is True


def test_the_gate_of_a_run_takes_them_for_one():
    """Measured where the gate identifies languages, and only there."""
    prompts = [Prompt(row, code, text, text) for row, (code, text) in enumerate(RUN)]
    config = RewardConfig()
    pairs = gated_as_one(config, prompts).pairs
    assert pairs == (("id", "ms"),)
    inputs = reward_inputs([*prompts[:8], prompts[0]], [*MALAY, ENGLISH])
    apart, as_one = (make_gate(config, ("ms", "id", "sw"), None, found)(inputs).right_B for found in ((), pairs))
    assert not apart[:8].all() and as_one.tolist() == [True] * 8 + [False]
    assert gated_as_one(RewardConfig(language_gate="tokens"), prompts) == ((), ())


def test_english_questions_make_no_pair_with_english():
    """A column of untranslated questions must not open the gate to English replies; it is named."""
    found = related_languages([("sw", ENGLISH.replace("three", number)) for number in ("four", "five", "six", "nine")])
    assert found.pairs == ()
    assert len(found.notes) == 1 and found.notes[0].startswith("4 of 4 Swahili (sw) questions are not identified as")


@pytest.mark.parametrize("code, texts", [("sw", SWAHILI), ("ms", MALAY)])
def test_one_language_alone_says_nothing(code, texts):
    assert related_languages([(code, text) for text in texts]) == ((), ())
