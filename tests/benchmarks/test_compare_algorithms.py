"""The comparison of algorithms: settings that can run, intervals by hand, the table, and when tokens are spent."""

import json
import math
import sys

import pytest
from source_tree import ROOT

from pbrl_jax.core.validate import validate
from pbrl_jax.run.quickstart_config import quickstart_config

sys.path.insert(0, str(ROOT / "benchmarks"))

from compare_algorithms import (
    ALGORITHMS,
    NAMES,
    algorithm_config,
    interval,
    markdown,
    picture,
    summary_of,
    tokens_used,
)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_can_run(name):
    config = algorithm_config(quickstart_config(), name, 2)
    validate(config, 1)
    assert config.algo.num_iterations == 2 and config.reward == quickstart_config().reward


def test_intervals_by_hand():
    """1, 2, 3: mean 2, deviation 1, 4.303 / sqrt(3)."""
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.303 / math.sqrt(3))
    assert math.isnan(interval([5.0])[1])


def run(accuracy, tokens):
    return {"accuracy": accuracy, "english": 0.9, "tokens": tokens, "steps": 4, "seconds": 2.0}


def test_summary_table_and_picture(tmp_path):
    """Gains are taken within a seed; the best algorithm comes first."""
    seeds = {
        0: {"start": run(0.2, 0), "grpo": run(0.5, 100), "sft": run(0.3, 100)},
        1: {"start": run(0.3, 0), "grpo": run(0.6, 110), "sft": run(0.2, 100)},
    }
    summary = summary_of(seeds)
    assert summary["grpo"]["gain"] == pytest.approx((0.3, 0.0)) and summary["grpo"]["tokens"] == 105
    assert summary["sft"]["gain"][0] == pytest.approx(0.0) and summary["sft"]["gain"][1] > 1
    lines = markdown(summary, 2).splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["grpo", "start", "sft"]
    assert "| 55.0 ± 63.5 | 30.0 ± 0.0 |" in lines[4]
    picture(summary, tmp_path / "comparison.png")
    assert (tmp_path / "comparison.png").stat().st_size > 1000
    assert set(NAMES) >= set(summary) - {"start"}


def test_tokens_of_a_log(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert tokens_used(file) == 0
    file.write_text("".join(json.dumps(row) + "\n" for row in ({"num_tokens": 7}, {"loss": 1.0}, {"num_tokens": 5})))
    assert tokens_used(file) == 12
