"""Prompts: one beginning of sequence, three styles, every language."""

import pytest

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.data.sources import quickstart
from pbrl_jax.text.answers import extract_answer
from pbrl_jax.text.languages import LANGUAGES, answer_sentence, script_share
from pbrl_jax.text.prompts import INSTRUCTIONS, QUESTION_WORDS, format_prompt, format_prompts, instruction, prompt_text
from pbrl_jax.text.tokenizers import train_sentencepiece


class Chatty:
    """A tokenizer of characters whose template writes `template_bos` beginnings of sequence."""

    vocab_size, pad_id, eos_ids = 2000, 0, (2,)

    def __init__(self, bos_id, template_bos):
        self.bos_id, self.template_bos = bos_id, template_bos

    def encode(self, text):
        return [10 + ord(c) for c in text]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def encode_chat(self, messages):
        return [1] * self.template_bos + self.encode(messages[-1]["content"])

    def decode(self, ids):
        return "".join(chr(i - 10) for i in ids if i > 2)

    def pieces(self):
        return [chr(max(0, i - 10)) for i in range(self.vocab_size)]

    @property
    def fingerprint(self):
        return "chatty"

    def save(self, directory):
        raise NotImplementedError


def test_tables_cover_every_language():
    assert set(QUESTION_WORDS) == set(INSTRUCTIONS) == set(LANGUAGES)


@pytest.mark.parametrize("code", sorted(LANGUAGES))
def test_instructions_are_in_their_language_and_ask_for_its_answer_sentence(code):
    text = instruction(code)
    assert answer_sentence("N", code) in text
    assert script_share(text.replace("N", ""), code) == 1.0
    # A policy that repeats the instruction has not answered.
    assert extract_answer(text, code) is None


@pytest.mark.parametrize(("bos_id", "template_bos"), [(1, 0), (1, 1), (1, 2), (None, 0)])
def test_exactly_one_beginning_of_sequence(bos_id, template_bos):
    tokenizer = Chatty(bos_id, template_bos)
    for style in ("plain", "base", "chat"):
        ids = format_prompt("2 + 2?", "en", tokenizer, style)
        assert ids.count(1) == (0 if bos_id is None else 1)
        assert bos_id is None or ids[0] == bos_id


def test_styles_by_hand():
    tokenizer = Chatty(1, 1)
    assert tokenizer.decode(format_prompt("Ngapi?", "sw", tokenizer, "plain")) == "Ngapi?\n"
    assert prompt_text("Ngapi?", "sw", "base") == "Swali: Ngapi?\nJibu la Hatua kwa Hatua:"
    chat = tokenizer.decode(format_prompt("Ngapi?", "sw", tokenizer, "chat"))
    assert chat.startswith("Tatua swali") and chat.endswith("“Jibu ni N.”\n\nNgapi?")


def test_many_prompts_at_once_are_the_same_as_one_by_one():
    problems = quickstart.problems("train", 20, seed=0)
    codes = [quickstart.LANGUAGES[i % 8] for i in range(20)]
    questions = [quickstart.question(p, code) for p, code in zip(problems, codes, strict=True)]
    tokenizer = train_sentencepiece(questions, 1000)
    together = format_prompts(questions, codes, tokenizer)
    assert together == [format_prompt(q, code, tokenizer) for q, code in zip(questions, codes, strict=True)]
    newline = tokenizer.encode("\n")[-1]
    assert all(ids[0] == 1 and ids[-1] == newline for ids in together)
    assert [tokenizer.decode(ids) for ids in together] == [f"{question}\n" for question in questions]


def test_bad_input():
    tokenizer = Chatty(1, 0)
    with pytest.raises(ConfigError, match="Unknown prompt style 'chatt'.*Did you mean 'chat'"):
        format_prompt("?", "en", tokenizer, "chatt")
    with pytest.raises(ConfigError, match="Unknown language"):
        format_prompt("?", "xx", tokenizer, "base")
    with pytest.raises(ConfigError, match="no chat template"):
        format_prompt("?", "en", train_sentencepiece(["a b c"] * 9, 50), "chat")
