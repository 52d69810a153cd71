"""Rows as other trainers write them: conversations, columns inside columns, and folders laid out as on the hub."""

import json

import pytest
from row_files import ASK, write
from text_helpers import format_prompt
from tiny_hf import TEMPLATE, hf_tokenizer

from pbrl_jax import DataConfig
from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.data.load import check_rows, dataset_fingerprint, fit_prompts, load_prompts, refuse_trained
from pbrl_jax.data.sources import table
from pbrl_jax.text.prompts import chat_messages, form_of
from pbrl_jax.text.wording import Wording

VERL = {
    "data_source": "own/maths", "prompt": ASK, "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "18"}, "extra_info": {"split": "train", "answer": "6 * 3 = 18"},
}  # fmt: skip


def read(path, languages=("sw",), columns=(), split="train"):
    return table.rows(str(path), split, languages, 0, 0, columns)


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_verls_rows(ending, tmp_path):
    """A conversation as the question, the gold answer inside a column, all other columns for reward functions."""
    path = write(tmp_path / f"train.{ending}", [VERL])
    columns = ("answer=reward_model.ground_truth", "reference=extra_info.answer")
    (row,) = read(path, columns=columns)
    assert (row.question, row.turns) == ("Ngapi?", (("system", "Be short."), ("user", "Ngapi?")))
    assert (row.answer, row.reference.text) == ("18", "6 * 3 = 18")
    assert dict(row.columns)["reward_model"]["ground_truth"] == "18" and "prompt" not in dict(row.columns)
    with pytest.raises(DataError, match="no column 'reward_model.truth' for answer.*reward_model.ground_truth"):
        read(path, columns=("answer=reward_model.truth",))


@pytest.mark.parametrize(
    ("name", "turns"),
    [
        ("prompt", ASK),
        ("messages", [*ASK, {"role": "assistant", "content": "18"}]),
        ("conversations", [{"from": "system", "value": "Be short."}, {"from": "human", "value": "Ngapi?"}]),
        ("messages", [ASK[0], {"role": "user", "content": [{"type": "text", "text": "Ngapi?"}]}]),
    ],
)
def test_forms_of_conversations(name, turns, tmp_path, capsys):
    """What the policy reads are the row's own turns; a reply at their end is what the policy is to write itself."""
    (row,) = read(write(tmp_path / "x.jsonl", [{name: turns}]))
    tokenizer = hf_tokenizer(TEMPLATE)
    _, (ids,) = fit_prompts([row], tokenizer, 200, **form_of(DataConfig(prompt_style="chat")))
    assert tokenizer.tokenizer.decode(ids) == (
        "<s><|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nNgapi?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ("reply at the end of messages is left out" in capsys.readouterr().err) == (len(turns) == 3)


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_columns_written_as_json_text(ending, tmp_path):
    row = {name: json.dumps(cell) if isinstance(cell, list | dict) else cell for name, cell in VERL.items()}
    columns = ("answer=reward_model.ground_truth", "reference=extra_info.answer")
    (read_row,) = read(write(tmp_path / f"train.{ending}", [row]), columns=columns)
    assert (read_row.turns, read_row.answer) == ((("system", "Be short."), ("user", "Ngapi?")), "18")
    assert read_row.reference.text == "6 * 3 = 18" and dict(read_row.columns)["reward_model"] == row["reward_model"]


def test_a_conversation_beside_the_question_it_was_made_from_is_what_is_asked(tmp_path):
    """As data sets that were mapped for TRL hold both; the question goes to reward functions."""
    path = write(tmp_path / "x.jsonl", [{"question": "Ngapi?", "prompt": ASK, "answer": "18"}])
    (row,) = read(path)
    assert row.turns == (("system", "Be short."), ("user", "Ngapi?")) and dict(row.columns)["question"] == "Ngapi?"
    assert read(path, columns=("question=question",))[0].turns == ()


def test_a_prompt_of_text_stays_text(tmp_path):
    (row,) = read(write(tmp_path / "x.jsonl", [{"prompt": "Ngapi?", "question": None}]), columns=("question=prompt",))
    assert (row.question, row.turns, row.asked) == ("Ngapi?", (), "Ngapi?")


def test_own_words_around_a_conversation():
    turns = (("system", "Be short."), ("user", "a"), ("assistant", "b"), ("user", "c"))
    own = Wording({"default": "In {language}."}, {"default": "{question}!"})
    said = [(turn["role"], turn["content"]) for turn in chat_messages(turns, "sw", "chat_boxed", own)]
    assert said == [("system", "In Swahili."), *turns[1:3], ("user", "c!")]
    with pytest.raises(ConfigError, match="style plain has no turns. Use --data.prompt-style chat_question"):
        format_prompt(turns, "sw", hf_tokenizer(TEMPLATE), "plain")


@pytest.mark.parametrize(
    ("turns", "what"),
    [
        ([], "prompt is an empty list"),
        ([{"role": "tool", "content": "x"}], "turn 1 of prompt is .*expected {role, content} with one of system"),
        ([ASK[1], {"role": "user", "content": None}], "turn 2 of prompt"),
        ([{"role": "user", "content": [{"type": "image", "image": "x.png"}]}], "turn 1 of prompt"),
        (["Ngapi?"], "turn 1 of prompt"),
        ([ASK[0]], "has the turns system; expected a user's at the end"),
    ],
)  # fmt: skip
def test_turns_that_are_none(turns, what, tmp_path):
    path = write(tmp_path / "x.jsonl", [{"prompt": ASK}, {"prompt": turns}])
    with pytest.raises(DataError, match=f"x.jsonl: row 2: .*{what}"):
        read(path)


def test_earlier_turns_tell_questions_apart(tmp_path):
    """The same last question behind other turns is another question, another fingerprint and no training row."""
    other = [{"role": "user", "content": "Tano?"}, {"role": "assistant", "content": "Ndiyo."}, ASK[1]]
    first, second = read(write(tmp_path / "x.jsonl", [{"prompt": ASK}, {"prompt": other}]))
    assert check_rows([first, second]) == [] and check_rows([first, first._replace(id=second.id)])
    assert dataset_fingerprint([first]) != dataset_fingerprint([first._replace(turns=second.turns)])
    refuse_trained([second], [first])
    with pytest.raises(DataError, match="also training rows"):
        refuse_trained([second], [second])


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"),
        ("train-00000-of-00002-0123456789abcdef.parquet", "train-00001-of-00002-fedcba9876543210.parquet"),
        ("train/0000.parquet", "train/0001.parquet"),
        ("data/train_0.jsonl", "data/train_1.jsonl"),
        ("default/train-00000-of-00002.parquet", "default/train-00001-of-00002.parquet"),
    ],
)
def test_files_of_a_split(names, tmp_path):
    """In the order of their names, beside another split and hidden folders; rows are numbered through."""
    for number, name in enumerate(names):
        write(tmp_path / name, [{"question": f"q{number}"}, {"question": f"r{number}"}])
        write(tmp_path / name.replace("train", "test"), [{"question": "t"}])
    write(tmp_path / ".cache" / "train.jsonl", [{"question": "none"}])
    rows = read(tmp_path)
    assert [row.question for row in rows] == ["q0", "r0", "q1", "r1"] and len({row.id for row in rows}) == 4
    (tmp_path / names[1]).unlink()
    if "-of-" in names[0]:
        with pytest.raises(DataError, match="1 of the 2 files of 'train'"):
            read(tmp_path)
    write(tmp_path / names[1], [{"question": "q"}, {"question": None}])
    with pytest.raises(DataError, match=rf"{names[1]}: row 2: question is missing"):
        read(tmp_path)


def test_folders_of_languages(tmp_path):
    """Configurations that are languages name that of their rows; of others, one has to be named."""
    for code in ("en", "swh_Latn"):
        write(tmp_path / "own" / code / "test-00000-of-00001.parquet", [{"question": code, "answer": "1"}])
    data = DataConfig(source="table", path=str(tmp_path / "own"), languages=("en", "sw"), split="test")
    found = load_prompts(data, 0, require=("answer",))
    assert [(row.question, row.language) for row in found] == [("en", "en"), ("swh_Latn", "sw")]
    for name in ("main", "socratic"):
        write(tmp_path / "two" / name / "test.jsonl", [{"question": "q"}])
    with pytest.raises(DataError, match="holds the data sets main, socratic. Name one of them: data.path .*two/main"):
        read(tmp_path / "two", split="test")
    assert len(read(tmp_path / "two" / "main", split="test")) == 1
