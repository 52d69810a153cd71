"""A user's own words around a question: from settings or a file, per language, instead of all of ours."""

import pytest

from pbrl_jax.config.data import DataConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.records import Prompt
from pbrl_jax.data.load import dataset_fingerprint
from pbrl_jax.text.prompts import chat_messages, form_of, prompt_text
from pbrl_jax.text.wording import OURS, wording_of

FILE = """
system:
  default: "Answer in {language}."
  sw: "Jibu: {phrase}"
user:
  th: "{question} (th)"
"""


def turns(question, code, style="chat", **settings):
    wording = wording_of(DataConfig(prompt_style=style, **settings))
    return [(turn["role"], turn["content"]) for turn in chat_messages(question, code, style, wording)]


def test_own_words_replace_all_of_the_style_s():
    assert turns("Tell me of a lake.", "en", "chat_question") == [("user", "Tell me of a lake.")]
    for style in ("chat", "chat_boxed", "chat_tags", "chat_question", "auto"):
        assert turns("A lake?", "sw", style, system_prompt="Speak {language}.") == [
            ("system", "Speak Swahili."), ("user", "A lake?"),
        ]  # fmt: skip
        assert turns("A lake?", "en", style, user_prompt="In short: {question}") == [("user", "In short: A lake?")]
    own = wording_of(DataConfig(user_prompt="Q: {question}\nA:"))
    assert prompt_text("{language}?", "en", "plain", own) == "Q: {language}?\nA:", (
        "a question is not searched for slots"
    )


def test_a_file_has_words_per_language(tmp_path):
    file = tmp_path / "words.yaml"
    file.write_text(FILE, encoding="utf-8")
    asked = {code: turns("2?", code, prompt_file=str(file)) for code in ("en", "sw", "th")}
    assert asked == {
        "en": [("system", "Answer in English."), ("user", "2?")],
        "sw": [("system", "Jibu: Jibu ni N."), ("user", "2?")],
        "th": [("system", "Answer in Thai."), ("user", "2? (th)")],
    }
    text = tmp_path / "words.txt"
    text.write_text("Think.\n{question}", encoding="utf-8")
    assert turns("2?", "en", prompt_file=str(text)) == [("user", "Think.\n2?")]


def test_own_words_are_part_of_the_data(tmp_path):
    rows = [Prompt(0, "en", "2?", "2?")]
    file = tmp_path / "words.txt"
    prints = [dataset_fingerprint(rows)]
    for words in ("a {question}", "b {question}"):
        file.write_text(words)
        prints.append(dataset_fingerprint(rows, wording_of(DataConfig(prompt_file=str(file)))))
    assert len(set(prints)) == 3 and dataset_fingerprint(rows, OURS) == prints[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"system_prompt": "x"}, "needs a chat, and data.prompt_style is plain"),
        ({"user_prompt": "Solve."}, "has no {question}"),
        ({"user_prompt": "{question}", "prompt_file": "x.yaml"}, "Put both texts into the file"),
        ({"prompt_file": "none.yaml"}, "cannot be read"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        form_of(DataConfig(**settings))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sytem: x", "has the key 'sytem'.*Did you mean 'system'"),
        ("user: {xx: '{question}'}", "Unknown language 'xx'"),
        ("user: {sw: 3}", "user of sw is 3"),
        ("- a", "holds list"),
        ("a: [", "cannot be read"),
    ],
)
def test_files_that_are_refused(content, message, tmp_path):
    file = tmp_path / "words.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        form_of(DataConfig(prompt_file=str(file)))
