"""The numbers of eval.json by hand."""

import pytest

from pbrl_jax.core.errors import DataError
from pbrl_jax.eval.metrics_table import compare, language_row, sample_metrics, summary, votes
from pbrl_jax.eval.statistics import bootstrap_interval


def row(language, number, correct, sample=0, extracted="4", **more):
    return {
        "key": f"{language}/{number}", "language": language, "sample": sample, "correct": correct,
        "extracted": extracted, "completion": "abcd", "tokens": 3, "truncated": False, "marker_missing": False,
        "published": {"lm_eval_strict": correct}, "right_language": True, "line_pass": None, "word_pass": None,
        "code_switch": False, **more,
    }  # fmt: skip


def rows(**languages):
    """rows(sw=[1, 0]): one row for each verdict."""
    return [row(code, i, bool(x)) for code, verdicts in languages.items() for i, x in enumerate(verdicts)]


ROWS = rows(en=[1, 1, 1, 0], sw=[1, 0, 1, 0], bn=[0, 0, 1, 0], zh=[1, 1, 1, 0])


def test_one_language():
    part = [
        row("sw", 0, True),
        row("sw", 1, False, extracted=None, right_language=False, truncated=True, tokens=9),
        row("sw", 2, True, marker_missing=True, line_pass=True),
        row("sw", 3, False, published={"lm_eval_strict": True}, line_pass=False, code_switch=None),
    ]
    found = language_row(part, seed=3)
    assert (found["accuracy"], found["low"], found["high"]) == bootstrap_interval([1, 0, 1, 0], 3)
    assert found["n"] == 4 and found["extraction_failures"] == 0.25 and found["right_language"] == 0.75
    assert found["line_pass_rate"] == 0.5 and found["word_pass_rate"] is None and found["code_switch_share"] == 0
    assert found["marker_missing"] == 0.25 and found["truncated"] == 0.25
    assert found["mean_tokens"] == 4.5 and found["mean_characters"] == 4
    assert found["published"] == {"lm_eval_strict": 0.75} and "pass@1" not in found


def test_means_gap_and_worst():
    found = summary(ROWS, seen=("sw", "zh", "en"))
    assert {code: part["accuracy"] for code, part in found["languages"].items()} == {
        "en": 0.75, "sw": 0.5, "bn": 0.25, "zh": 0.75,
    }  # fmt: skip
    assert found["mean_non_english"] == 0.5 and found["gap_to_english"] == 0.25 and found["mean"] == 0.5625
    low, high = found["mean_non_english_interval"]
    assert 0 <= low < 0.5 < high <= 1
    assert found["worst_language"] == {"language": "bn", "accuracy": 0.25}
    assert found["seen"]["languages"] == ["sw", "zh"] and found["seen"]["accuracy"] == 0.625
    assert found["unseen"]["languages"] == ["bn"] and found["unseen"]["accuracy"] == 0.25
    assert found["published_mean_non_english"] == {"lm_eval_strict": 0.5}


def test_without_english_and_with_it_alone():
    assert summary(rows(sw=[1, 0]))["gap_to_english"] is None
    alone = summary(rows(en=[1, 0]))
    assert alone["mean_non_english"] is alone["worst_language"] is alone["mean_non_english_interval"] is None
    assert alone["published_mean_non_english"] == {} and "seen" not in alone


def test_log_probabilities_have_no_text():
    scored = [{key: ROWS[4][key] for key in ("key", "language", "sample", "correct", "extracted", "published")}]
    found = summary(scored)["languages"]["sw"]
    assert found["right_language"] is None and found["extraction_failures"] == 0 and "mean_tokens" not in found


def test_several_samples():
    """Two problems of four samples; 7 and 7.0 are one answer."""
    table = [(0, "7", True), (0, "3", False), (0, "7.0", True), (0, None, False)]
    table += [*[(1, "2", False)] * 3, (1, "5", True)]
    part = [row("sw", n, right, sample=i % 4, extracted=answer) for i, (n, answer, right) in enumerate(table)]
    assert votes(part[:4]) == [0, 1, 0, -1]
    found = sample_metrics(part)
    assert found["pass@1"] == found["mean@4"] == 0.375 and found["mean@1"] == 0.5
    assert found["pass@2"] == pytest.approx((5 / 6 + 3 / 6) / 2) and found["pass@4"] == 1
    assert found["maj@1"] == found["maj@2"] == found["maj@4"] == 0.5
    assert set(found) == {f"{name}@{k}" for name in ("pass", "mean", "maj") for k in (1, 2, 4)}
    assert language_row(part, 0)["accuracy"] == 0.375 and language_row(part, 0)["n"] == 2


def test_against_a_base():
    base = rows(en=[1, 1, 1, 1], sw=[0, 0, 1, 0], bn=[0, 0, 0, 0], zh=[1, 1, 0, 0])
    found = compare(base, ROWS)
    assert found["languages"]["sw"]["base"] == 0.25 and found["languages"]["sw"]["points"] == 0.25
    assert found["languages"]["sw"]["relative"] == 1 and found["languages"]["bn"]["relative"] is None
    assert found["languages"]["sw"]["p_mcnemar"] == 1, "one discordant pair settles nothing"
    assert found["english_retention"] == 0.75
    assert found["mean_non_english"]["base"] == 0.25 and found["mean_non_english"]["points"] == 0.25
    same = compare(ROWS, ROWS)
    assert same["english_retention"] == 1 and same["mean_non_english"]["p_bootstrap"] == 1
    assert compare(rows(sw=[1]), rows(sw=[1]))["english_retention"] is None
    with pytest.raises(DataError, match=r"has 2 problems and this evaluation 1: 1 only in the base \(sw/1\)"):
        compare(rows(sw=[1, 0]), rows(sw=[1]))
