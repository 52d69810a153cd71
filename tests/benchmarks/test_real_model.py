"""The stages of a real model: commands that can be typed, their table, and answers that must agree."""

import argparse
import sys

import pytest
from real_model import CONFIG, PROMPT, answer_of, compared, markdown, measured, stages_of
from source_tree import ROOT

from pbrl_jax import cli
from pbrl_jax.run.config_file import load_config, override

FLAGS = argparse.Namespace(workdir="W", policy="P", encoder="E")


def test_every_stage_is_a_command_that_can_be_typed(monkeypatch):
    import pbrl_jax.report.write

    called = []
    monkeypatch.setattr(pbrl_jax.report.write, "report_workdirs", lambda *_: called.append("report"))
    for verb in ("eval", "convert", "generate"):
        module = __import__(f"pbrl_jax.run.{verb}", fromlist=["main"])
        monkeypatch.setattr(module, "main", lambda *_, verb=verb: called.append(verb))
    stages = stages_of(FLAGS, "data")
    for _, words in stages:
        if words[1] == CONFIG:
            flags = [word for word in words[2:] if word not in ("--limit", "16", "--replies", "W/replies.jsonl")]
            at = flags.index("--workdir")
            config = override(load_config(str(ROOT / CONFIG)), flags[:at] + flags[at + 2 :], words[0])
            assert (config.policy.source, config.encoder.source) == ("P", "E")
        else:
            assert cli.main(words) == 0 and called[-1] == words[0]
    assert [stage.name for stage in stages if stage not in stages_of(FLAGS, "")] == ["evaluation"]


def test_a_command_is_measured_and_a_failed_one_named(tmp_path):
    code = "import time; x = bytearray(100 << 20); time.sleep(1); print('done')"
    row = measured([sys.executable, "-c", code], tmp_path / "log")
    assert (tmp_path / "log").read_text() == "done\n" and row["seconds"] >= 1 and row["cpu_seconds"] < 5
    assert row["peak_gb"] == pytest.approx(0.11, abs=0.02), "that of the command, not of this process"
    with pytest.raises(SystemExit, match="failed; its output is in .*log"):
        measured([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "log")
    assert markdown({"audit": {"seconds": 12.4, "cpu_seconds": 20.6, "peak_gb": 1.26}}).endswith(
        "| audit | 12 | 21 | 1.3 |\n"
    )


def test_answers_must_agree(tmp_path, capsys):
    log = tmp_path / "answer.log"
    log.write_text(f"a line before\n> {PROMPT}\nParis.\n\n")
    assert answer_of(log) == "Paris."
    peer = tmp_path / "peer"
    peer.write_text("#!/bin/sh\necho 'Paris.'\n")
    peer.chmod(0o755)
    compared(str(peer), "hf", answer_of(log))
    assert "the same answer: 'Paris.'" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="answers differently in transformers"):
        compared(str(peer), "hf", "London.")
    peer.write_text("#!/bin/sh\necho 'no such folder' >&2; exit 1\n")
    with pytest.raises(SystemExit, match="transformers cannot load hf: no such folder"):
        compared(str(peer), "hf", "Paris.")
