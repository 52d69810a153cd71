"""The table of tokens per language, and the answer phrases as tokens."""

import numpy as np
from tiny_world import LANGUAGES, tokenizer

from pbrl_jax.data.sources import quickstart
from pbrl_jax.text.languages import LANGUAGES as KNOWN
from pbrl_jax.text.token_languages import marker_tokens, token_language_table

TEXTS = {"en": ["The answer is 12.", "Ali buys two."], "sw": ["Jibu ni 12.", "Ali ananunua."]}


class Letters:
    """One token per character, and an end of sequence."""

    alphabet = "abc1+ é"
    vocab_size, pad_id, bos_id, eos_ids, fingerprint = 8, 7, None, (7,), "letters"

    def encode_chat(self, messages):
        raise NotImplementedError("the table asks for no chat")

    def save(self, directory):
        raise NotImplementedError("the table saves nothing")

    def decode(self, ids):
        return "".join(self.pieces()[i] for i in ids)

    def pieces(self):
        return [*self.alphabet, ""]

    def encode(self, text):
        return [self.alphabet.index(c) for c in text]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]


def test_a_table_by_hand():
    """a b c 1 + space é and the end: letters belong where they occur, the rest everywhere."""
    table = token_language_table(Letters(), {"x": ["a1", "b"], "y": ["bé"], "z": []})
    neutral = [False, False, False, True, True, True, False, True]
    assert table["x"].tolist() == [True, True, *neutral[2:]]
    assert table["y"].tolist() == [False, True, False, True, True, True, True, True]
    assert table["z"].tolist() == neutral


def test_what_may_stand_for_any_letter_is_not_neutral_in_a_gate():
    """Circled letters are unknown to the vocabulary; a gate that passed them would pass any text written so."""
    table = token_language_table(tokenizer(), TEXTS, textless=False)
    assert not table["sw"][tokenizer().encode("ⓐⓛⓘ ⓑⓤⓨⓢ")].all() and not table["sw"][tokenizer().pad_id]
    assert table["sw"][list(tokenizer().eos_ids)].all() and table["sw"][tokenizer().encode("3 + 14 = 17.")].all()
    split = type("Split", (Letters,), {"pieces": lambda self: [*"ab\ufffd1+ é", ""]})()
    found = token_language_table(split, {"x": []}, textless=False)["x"]
    assert found.tolist() == [False, False, False, True, True, True, False, True]


def test_responses_belong_to_their_own_language_alone():
    """The table of some problems' responses passes every other problem's response, and none of another language."""
    known = quickstart.problems("sft", 300, 0, "small")
    table = token_language_table(
        tokenizer(), {code: [quickstart.response(p, code) for p in known] for code in LANGUAGES}
    )
    for problem in quickstart.problems("train", 40, 0, "small"):
        for code in LANGUAGES:
            ids = tokenizer().encode(quickstart.response(problem, code))
            assert [other for other in LANGUAGES if table[other][ids].all()] == [code]


def test_digits_operators_and_the_end_belong_to_all():
    table = token_language_table(tokenizer(), TEXTS)
    for code in TEXTS:
        assert table[code][tokenizer().encode("3 + 14 = 17. 2 * 5")].all()
        assert table[code][list(tokenizer().eos_ids)].all()
    assert not np.array_equal(table["en"], table["sw"])


def test_markers_are_the_phrases_as_they_stand_in_a_response():
    """Each phrase's tokens are found in the tokens of a whole response; shorter ones are padded with -1."""
    phrases = {code: KNOWN[code].answer_phrase.split("{")[0].strip() for code in LANGUAGES}
    table = marker_tokens(tokenizer(), phrases)
    for row, code in enumerate(LANGUAGES):
        marker = [int(token) for token in table[row] if token >= 0]
        assert tokenizer().decode(marker) == phrases[code]
        assert (table[row][len(marker) :] == -1).all()
        for problem in quickstart.problems("train", 10, 0, "small"):
            ids = tokenizer().encode(quickstart.response(problem, code))
            places = [i for i in range(len(ids)) if ids[i : i + len(marker)] == marker]
            assert len(places) == 1
            assert tokenizer().decode(ids[places[0] :]) == quickstart.reference(problem, code).answer
