"""The comparison of algorithms: settings that can run, intervals by hand, the table, and when tokens are spent."""

import json
import math

import pytest
from compare_algorithms import ALGORITHMS, NAMES, algorithm_config
from compare_rewards import REWARDS, TRANSLATED, measures, parse, reward_config
from comparison import copy_start, finished, interval, markdown, picture, rewards_seen, summary_of, tokens_used

from pbrl_jax.config.checks import unread_fields
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.quickstart.settings import quickstart_config
from pbrl_jax.run.check import validate


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_can_run(name):
    config = algorithm_config(quickstart_config(), name, 2)
    validate(config, 1)
    assert config.algo.num_iterations == 2 and config.reward == quickstart_config().reward


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_can_run_and_reads_its_settings(name):
    config = reward_config(quickstart_config(), name, "W/translator")
    validate(config, 1)
    assert not [line for line in unread_fields(config) if "reward." in line]
    assert (config.reward.translator == "W/translator") == (name in TRANSLATED)


def test_columns_of_rewards_by_hand():
    """Seen: sw; unseen: zh. Both replies in the right language: 0.5 and 1. English: 0.875."""
    table = {"en": {"accuracy": 0.875, "right_language": 1.0}, "sw": {"accuracy": 0.25, "right_language": 0.5},
             "zh": {"accuracy": 0.75, "right_language": 1.0}}  # fmt: skip
    values = {name: measure(table) for name, measure in measures(("en", "sw")).items()}
    assert values == {"right_language": 0.75, "seen": 0.25, "gap_seen": 0.625, "unseen": 0.75, "gap_unseen": 0.125}
    assert list(measures(())) == ["right_language"]
    flags = parse(["--workdir", "W", "--only", "hybrid", "--prompts-seen", "250", "500"])
    assert flags.only == ["hybrid@250", "hybrid@500"]


@pytest.mark.parametrize("languages, problem", [(["en", "xx"], "--languages xx: the task has en"),
                                                (["en", "sw", "zh"], "names all languages")])  # fmt: skip
def test_languages_that_leave_none_out_are_refused(languages, problem, capsys):
    with pytest.raises(SystemExit):
        parse(["--workdir", "W", "--tiny", "--languages", *languages])
    assert problem in capsys.readouterr().err


def test_intervals_by_hand():
    """1, 2, 3: mean 2, deviation 1, 4.30265 / sqrt(3)."""
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert math.isnan(interval([5.0])[1])


def run(accuracy, tokens):
    return {"accuracy": accuracy, "english": 0.9, "rewards": None, "tokens": tokens, "steps": 4, "seconds": 2.0}


def test_summary_table_and_picture(tmp_path):
    """Gains, and what GRPO is ahead by, are taken within a seed; the best algorithm comes first."""
    seeds = {
        0: {"start": run(0.2, 0), "grpo": run(0.5, 100), "sft": run(0.3, 100)},
        1: {"start": run(0.3, 0), "grpo": run(0.6, 110), "sft": run(0.2, 100)},
    }
    summary = summary_of(seeds, NAMES, "grpo")
    assert summary["grpo"]["gain"] == pytest.approx((0.3, 0.0)) and summary["grpo"]["tokens"] == 105
    assert summary["sft"]["gain"][0] == pytest.approx(0.0) and summary["sft"]["gain"][1] > 1
    assert summary["sft"]["ahead"][0] == pytest.approx(0.3) and summary["grpo"]["ahead"] is None
    lines = markdown(summary, "algorithm", "GRPO").splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["grpo", "start", "sft"]
    assert "| 55.0 ± 63.5 | 30.0 ± 0.0 |  |" in lines[4] and lines[4].endswith("| 4 | 2 | 2 |")
    seeds[0]["grpo"]["rewards"], seeds[1]["grpo"]["rewards"] = (0.1, 0.4), (0.3, 0.5)
    rewarded = markdown(summary_of(seeds, NAMES, "grpo"), "algorithm", "GRPO").splitlines()
    assert "| 0.20 -> 0.45 | 105 |" in rewarded[4]
    del seeds[1]["sft"]
    assert summary_of(seeds, NAMES, "grpo")["sft"]["seeds"] == 1 and "ppo" not in summary
    picture(summary, tmp_path / "comparison.png")
    assert (tmp_path / "comparison.png").stat().st_size > 1000
    assert set(NAMES) >= set(summary) - {"start"}
    by_prompts = {"start": summary["start"], "a@250": summary["sft"], "a@500": summary["grpo"]}
    picture(by_prompts, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_starts_are_copied_and_finished_runs_are_found(tmp_path):
    """A quickstart's stages under their names here, of the right seed and whole; then a run of SFT beside it."""
    start, root = tmp_path / "quickstart", tmp_path / "compare" / "seed_1"
    for folder in ("sft", "encoder", "stages"):
        (start / folder).mkdir(parents=True)
    (start / "config.json").write_text('{"train": {"seed": 1}}')
    (start / "sft" / "weights").write_text("w")
    with pytest.raises(ConfigError, match="has not finished sft, encoder, evaluate_before. Type: pbrl quickstart"):
        copy_start(start, root, 1)
    table = {"en": {"accuracy": 0.9}, "sw": {"accuracy": 0.25}, "zh": {"accuracy": 0.75}}
    for name, result in (("sft", None), ("encoder", None), ("evaluate_before", table)):
        (start / "stages" / f"{name}.json").write_text(json.dumps({"result": result, "seconds": 1.0}))
    with pytest.raises(ConfigError, match="has seed 1, expected 0"):
        copy_start(start, root, 0)
    copy_start(start, root, 1)
    copy_start(start, root, 1)
    assert (root / "sft" / "weights").read_text() == "w"
    assert finished(root.parent, NAMES) == {1: {"start": run(0.5, 0) | {"steps": 0, "seconds": 0.0, "table": table}}}
    used = {"result": {"tokens": 7, "steps": 3}, "seconds": 2.5}
    (root / "stages" / "sft_pivots.json").write_text(json.dumps(used))
    (root / "stages" / "evaluate_sft.json").write_text(json.dumps({"result": table, "seconds": 1.0}))
    found = finished(root.parent, NAMES)[1]["sft"]
    assert found["accuracy"] == 0.5 and (found["tokens"], found["steps"], found["seconds"]) == (7, 3, 2.5)


def test_tokens_and_rewards_of_a_log(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert tokens_used(file) == 0 and rewards_seen(file) is None
    file.write_text("".join(json.dumps(row) + "\n" for row in ({"num_tokens": 7}, {"loss": 1.0}, {"num_tokens": 5})))
    assert tokens_used(file) == 12
    assert rewards_seen(file) is None
    file.write_text("".join(json.dumps({"reward": step / 10}) + "\n" for step in range(20)))
    assert rewards_seen(file) == pytest.approx((0.05, 1.85))
