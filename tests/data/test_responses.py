"""Supervised examples and pairs of preference in TRL's forms, and what `pbrl dpo` makes of a file of pairs."""

import json

import pytest
from row_files import ASK, write
from text_helpers import format_prompt
from tiny_hf import hf_policy

from pbrl_jax import Config, with_values
from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import work_dir
from pbrl_jax.data.responses import Preference, holds_preferences, read_examples, read_preferences
from pbrl_jax.run import dpo, sft, sft_sources

TURNS = (("system", "Be short."), ("user", "Ngapi?"))
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("Jibu ni 18.", "Sijui."))
PAIR = Preference("sw", "Ngapi?", "Jibu ni 18.", "Sijui.")
FORMS = {
    "text": ({"prompt": "Ngapi?", "chosen": "Jibu ni 18.", "rejected": "Sijui."}, PAIR),
    "named": ({"question": "Ngapi?", "chosen": "Jibu ni 18.", "rejected": "Sijui.", "language": "sw"}, PAIR),
    "conversations": ({"prompt": ASK, "chosen": [GOOD], "rejected": [BAD]}, PAIR._replace(question=TURNS)),
    "whole": ({"chosen": [*ASK, GOOD], "rejected": [*ASK, BAD]}, PAIR._replace(question=TURNS)),
    "whole beside a prompt": (
        {"prompt": "Ngapi?", "chosen": [*ASK, GOOD], "rejected": [*ASK, BAD]}, PAIR._replace(question=TURNS)
    ),
    "prefix": (
        {"chosen": "Swali: Ngapi?\nJibu ni 18.", "rejected": "Swali: Ngapi?\nJawabu ni 3."},
        Preference("sw", "Swali: Ngapi?\n", "Jibu ni 18.", "Jawabu ni 3.", True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_pairs(form, tmp_path):
    row, expected = FORMS[form]
    for ending in ("jsonl", "parquet"):
        path = write(tmp_path / f"pairs.{ending}", [row])
        assert holds_preferences(path) and read_preferences(path, languages=("sw",)) == [expected]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a "}, "chosen and rejected are the same"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "lacks rejected; expected text or turns"),
        ({"prompt": "q", "chosen": [GOOD], "rejected": [ASK[1]]}, "rejected has the turns user; expected one of the"),
        ({"chosen": [*ASK, GOOD], "rejected": [ASK[1], BAD]}, "chosen and rejected are conversations that do not"),
        ({"chosen": "a b", "rejected": "c d"}, "has no prompt, and chosen and rejected do not begin with the same"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt is int"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "prompt is empty"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "chosen is empty"),
        ({"chosen": "a: ", "rejected": "a: b"}, "chosen or rejected holds no more than the prompt"),
        ({"prompt": "[{'role': 'user'}]", "chosen": "a", "rejected": "b"}, "prompt is a conversation in no JSON"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "language": "xx"}, "unknown language 'xx'. Known"),
    ],
)
def test_pairs_that_are_none(row, what, tmp_path):
    path = write(tmp_path / "pairs.jsonl", [FORMS["text"][0], row])
    with pytest.raises(DataError, match=f"pairs.jsonl: line 2: {what}"):
        read_preferences(path, languages=("sw",))
    with pytest.raises(DataError, match="line 1: lacks language; expected a code"):
        read_preferences(path, languages=("sw", "en"))


EXAMPLES = [
    ({"messages": [*ASK, GOOD]}, TURNS), ({"prompt": ASK, "completion": [GOOD]}, TURNS),
    ({"prompt": "Ngapi?", "completion": "Jibu ni 18."}, "Ngapi?"),
    ({"question": "Ngapi?", "response": "Jibu ni 18.", "language": "sw"}, "Ngapi?"),
    ({"conversations": [{"from": "human", "value": "Ngapi?"}, {"from": "gpt", "value": "Jibu ni 18."}]}, TURNS[1:]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "asked"), EXAMPLES)
def test_forms_of_examples(row, asked, tmp_path):
    (example,) = read_examples(write(tmp_path / "x.parquet", [row]), languages=("sw",))
    assert example == ("sw", asked, "Jibu ni 18.")


def test_a_conversation_without_a_reply(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"messages": [*ASK, GOOD]}, {"messages": ASK}])
    with pytest.raises(DataError, match="line 2: messages has no reply of the assistant at its end"):
        read_examples(path, languages=("sw",))


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_conversations_written_as_json_text_are_conversations(ending, tmp_path):
    """As CSV files and some parquet files hold them."""
    rows = [{name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}
            for row, _ in (FORMS["conversations"], FORMS["whole"])]  # fmt: skip
    for row in rows:
        path = write(tmp_path / f"pairs.{ending}", [row])
        assert read_preferences(path, languages=("sw",)) == [PAIR._replace(question=TURNS)]
    for row in ({"prompt": ASK, "completion": [GOOD]}, {"messages": [*ASK, GOOD]}):
        path = write(tmp_path / f"x.{ending}", [{name: json.dumps(value) for name, value in row.items()}])
        assert read_examples(path, languages=("sw",)) == [("sw", TURNS, "Jibu ni 18.")]


def test_examples_that_are_none(tmp_path):
    """An empty response would teach to say nothing; half a character cannot be encoded."""
    for row, what in (
        ({"prompt": "q", "completion": ""}, "line 1: completion is empty"),
        ({"prompt": "q \ud83d", "completion": "a"}, "line 1, holds half of a character"),
    ):
        with pytest.raises(DataError, match=what):
            read_examples(write(tmp_path / "x.jsonl", [row]), languages=("sw",))
    plain = write(tmp_path / "x.jsonl", [{"prompt": "", "completion": "Habari."}])
    assert read_examples(plain, languages=("sw",)) == [("sw", "", "Habari.")]
    with pytest.raises(DataError, match="No file '.*none.jsonl'. Check the path"):
        read_examples(str(tmp_path / "none.jsonl"), languages=("sw",))


def test_rows_in_languages_that_are_not_named_are_counted(tmp_path, capsys):
    rows = [{"prompt": "q", "completion": "a", "language": code} for code in ("sw", "de", "de", "th")]
    assert len(read_examples(write(tmp_path / "x.jsonl", rows), languages=("sw",))) == 4
    assert "data.languages does not name, which are learnt, too: de 2, th 1." in capsys.readouterr().err
    read_examples(write(tmp_path / "x.jsonl", rows))
    assert not capsys.readouterr().err


def test_data_sets_of_the_hub(monkeypatch, tmp_path):
    """What is no file is asked for on the hub, as data.path is."""
    hub = {"owner/pairs": [FORMS["text"][0]], "owner/sft": [{"prompt": "Ngapi?", "completion": "Jibu ni 18."}]}
    monkeypatch.setattr("pbrl_jax.data.sources.table.read_hub", lambda name, *_: hub[name])
    monkeypatch.setattr(sft_sources, "policy_for_rows", lambda *_: hf_policy())
    assert holds_preferences("owner/pairs") and read_preferences("owner/pairs", languages=("sw",)) == [PAIR]
    config = with_values(Config(), data={"languages": ("sw",)}, sft={"source": "file", "path": "owner/sft"})
    assert sft_sources.supervised_rows(config, work_dir(tmp_path))[1] == [("sw", "Ngapi?", "Jibu ni 18.")]


@pytest.mark.parametrize(("verb", "section"), [(dpo, {"dpo": {}}), (sft, {"sft": {"source": "samples"}})])
def test_a_file_of_something_else_is_refused_before_models_are_loaded(verb, section, monkeypatch, tmp_path):
    path = write(tmp_path / "x.jsonl", [{"prompt": "q", "completion": "a"}])
    for module in (dpo, sft_sources):
        monkeypatch.setattr(module, "build_experiment", lambda *_: 1 / 0)
    for file, message in ((path, "line 1: lacks prompt_id.*or for `pbrl dpo` pairs"), (path + "l", "does not exist")):
        ((name, values),) = section.items()
        config = with_values(Config(), **{name: {**values, "path": file}})
        with pytest.raises(DataError, match=message):
            verb.main(config, str(tmp_path / "w"))


def test_dpo_learns_pairs_of_a_file(tmp_path, monkeypatch, capsys):
    """Without a reward, an encoder or references; the prompt in the run's form, or as it stands; replies end."""
    rows = [FORMS[name][0] for name in ("text", "conversations", "prefix")]
    rows.append({"chosen": "Swali: Ngapi? Jibu: 18", "rejected": "Swali: Ngapi? Jibu: 3"})
    rows.append({"prompt": "x" * 900, "chosen": "a", "rejected": "b"})
    path, seen = write(tmp_path / "pairs.jsonl", rows), []
    monkeypatch.setattr(dpo, "policy_for_rows", lambda *_: hf_policy())
    monkeypatch.setattr(dpo, "build_experiment", lambda *_: 1 / 0)
    monkeypatch.setattr(dpo, "train_preferences", lambda *given: seen.append(given[-1]) or given[2])
    monkeypatch.setattr(dpo, "save_policy", lambda *_: None)
    data = {"languages": ("sw",), "prompt_style": "chat_question"}
    lengths = {"max_prompt_length": 200, "max_completion_length": 60}
    dpo.main(with_values(Config(), data=data, dpo={"path": path}, rollout=lengths), str(tmp_path / "w"))
    tokenizer = hf_policy().tokenizer
    prompts = [format_prompt(asked, "sw", tokenizer, "chat_question") for asked in ("Ngapi?", TURNS)]
    prompts.append([tokenizer.bos_id, *tokenizer.encode("Swali: Ngapi?\n")])
    prompts.append([tokenizer.bos_id, *tokenizer.encode("Swali: Ngapi? Jibu:")])
    replies = [("Jibu ni 18.", "Sijui.")] * 2 + [("Jibu ni 18.", "Jawabu ni 3."), (" 18", " 3")]
    ends = [3, 3, *[tokenizer.eos_ids[0]] * 2]
    expected = [(prompt, *([*tokenizer.encode(text), end] for text in both))
                for prompt, both, end in zip(prompts, replies, ends, strict=True)]  # fmt: skip
    assert seen == [expected] and "gives 4 pairs; 1 are too long" in capsys.readouterr().out
    short = with_values(Config(), data=data, dpo={"path": path}, rollout={**lengths, "max_prompt_length": 2})
    with pytest.raises(DataError, match="None of the 5 pairs .* fits; the first has"):
        dpo.main(short, str(tmp_path / "w"))


def test_scored_responses_are_no_pairs(tmp_path):
    file = tmp_path / "scored.jsonl"
    file.write_text(json.dumps({"completions": []}) + "\n")
    assert not holds_preferences(str(file)) and not holds_preferences(str(tmp_path / "none.jsonl"))
