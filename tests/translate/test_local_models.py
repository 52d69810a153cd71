"""`pbrl translate` with models of this machine: random weights write nonsense, which is rejected and listed."""

import functools

import pytest
import tiny_world
from source_tree import ROOT
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax.cli import main
from pbrl_jax.core.paths import read_json_lines, write_json_lines
from pbrl_jax.translate.load import PromptedTranslator, load_translator
from pbrl_jax.translate.m2m100_translator import M2M100Translator
from pbrl_jax.weights.policies import save_policy

M2M100 = ROOT / "tests" / "fixtures" / "hf" / "m2m100"
QUESTIONS = [{"id": "houses", "question": "Bob buys 14 houses."}, {"id": "water", "question": "It carries $x$ tons."}]


@pytest.mark.parametrize("kind", [M2M100Translator, PromptedTranslator])
def test_a_local_model_translates_is_checked_and_is_not_asked_again(kind, tmp_path, monkeypatch, capsys):
    model = M2M100
    if kind is PromptedTranslator:
        model = tmp_path / "policy"
        save_policy(tiny_world.policy(), str(model))
        short = functools.partial(load_translator, max_completion_length=8, max_prompt_length=300)
        monkeypatch.setattr("pbrl_jax.run.translate.load_translator", short)
    write_json_lines(tmp_path / "in.jsonl", QUESTIONS)
    command = ["translate", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "--to", "sw", "--translator",
               str(model), "--no-back-translation"]  # fmt: skip
    assert main(command) == 0, capsys.readouterr().err
    accepted, rejected = (read_json_lines(tmp_path / f"out{end}.jsonl") for end in ("", ".rejected"))
    rows = accepted + rejected
    assert sorted(row["id"] for row in rows) == ["houses", "water"] and {row["language"] for row in rows} == {"sw"}
    assert rejected and all(row["reasons"] for row in rejected)
    assert f"{len(rejected)} rejected: " in capsys.readouterr().out
    kept = {row["text"] for row in read_json_lines(tmp_path / "out.cache.jsonl")}
    assert {row["question"] for row in rows} - {None} <= kept
    assert all(row["question"] is not None or row["reasons"] == ["reached the length limit"] for row in rejected)
    monkeypatch.setattr(kind, "write", None)
    assert main(command) == 0
    assert [read_json_lines(tmp_path / f"out{end}.jsonl") for end in ("", ".rejected")] == [accepted, rejected]
