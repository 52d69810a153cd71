"""Reports of several runs, of evaluations and audits, of contamination; and the small picture."""

import io
import json
import re

import pytest
from report_pages import SUMMARY, Page, make_workdir, metrics, sample

from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import as_path
from pbrl_jax.report.data import Intervals, ReportData, evaluation_lines, gap_line, pair, part_lines
from pbrl_jax.report.page import result_sentence
from pbrl_jax.report.plots import accuracy_bars, lines_chart
from pbrl_jax.report.write import evaluation_summary, read_run, report_workdirs, run_labels, write_picture

EVALUATION = {
    "benchmark": "mgsm", "protocol": "native-cot",
    "languages": {
        "en": {"accuracy": 0.9, "low": 0.86, "high": 0.94, "n": 250},
        "th": {"accuracy": 0.4, "low": 0.34, "high": 0.46, "n": 250},
    },
    "against_base": {"languages": {"th": {"base": 0.3, "points": 0.1, "low": 0.02, "high": 0.18},
                                   "en": {"base": 0.91, "points": -0.01, "low": -0.05, "high": 0.03}}},
    "contamination": {"ngram": 13, "n": 500, "overlapping": 5, "share": 0.01, "languages": {"th": 0.02, "en": 0.0},
                      "examples": [{"key": "th/0", "shared": "a b <c>"}]},
}  # fmt: skip
ANSWER = {"key": "th/0", "language": "th", "sample": 0, "question": "ลีน่ามี 4 ห่อ", "completion": "คำตอบคือ 12",
          "gold": "12", "correct": True, "published": {"lm_eval_strict": False}}  # fmt: skip
AUDIT = {"sw": {"wrong number": 0.99, "english/held_out": 0.6}, "te": {"wrong number": 1.0, "english/held_out": 0.97}}


def words_of(path) -> str:
    return re.sub(r"\s+", " ", Page(path.read_text(encoding="utf-8")).words)


def evaluated(step: int, english: float, others: float) -> dict:
    return {"step": step, "eval/accuracy/en": english, "eval/accuracy/sw": others, "eval/mean_non_english": others,
            "eval/problems/en": 64, "eval/problems/sw": 32}  # fmt: skip


def test_two_runs_in_one_file(tmp_path):
    for name, beta in (("a", 0.1), ("b", 0.2)):
        make_workdir(tmp_path / name)
        config = {"algo": {"beta": beta, "name": "grpo"}} | ({"guard": {"new": 7}} if name == "b" else {})
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    path = report_workdirs([tmp_path / "a", tmp_path / "b"])
    assert path == tmp_path / "a" / "comparison.html" and not (tmp_path / "b" / "comparison.html").exists()
    text, words = path.read_text(encoding="utf-8"), words_of(path)
    assert "Comparison of a, b" in words and "Comparison of the runs" in words
    assert "Settings that differ (1)" in words and "algo.beta 0.1 0.2" in words
    assert "Settings that only some of these runs have (1)" in words and "guard.new – 7" in words
    assert "Swahili sw 70.0 % 70.0 % 256" in words, "accuracy of each run, and the number of problems"
    assert "run other languages English gap gain of a steps" in words and "\u221221.0 +0.0 +0.0 %" in words
    assert 'id="by-run"' in text and text.count('data-run="b"') == 2 and "https://" not in text
    other = report_workdirs([tmp_path / "b"], tmp_path / "mine.html")
    assert other == tmp_path / "mine.html" and 'id="by-run"' not in other.read_text(encoding="utf-8")


def test_a_run_is_compared_once(tmp_path):
    make_workdir(tmp_path / "a")
    with pytest.raises(DataError, match="given twice"):
        report_workdirs([tmp_path / "a", tmp_path / "a"])
    roots = [as_path(tmp_path / name / "rl") for name in "xy"]
    assert run_labels(roots) == ["x/rl", "y/rl"] and run_labels(roots[:1]) == ["rl"]


def test_a_training_run_has_before_and_after_of_its_evaluations(tmp_path):
    make_workdir(tmp_path, summary=False)
    rows = [evaluated(0, 0.9, 0.3), evaluated(2, 0.9, 0.5)]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    final = {name: value for name, value in evaluated(3, 0.85, 0.6).items() if name != "step"}
    (tmp_path / "final.json").write_text(json.dumps({"step": 3, "params_sha256": "", "metrics": final}))
    data = read_run(tmp_path)
    assert data.summary["languages"] == {"en": {"before": 0.9, "after": 0.85}, "sw": {"before": 0.3, "after": 0.6}}
    assert data.summary["problems_per_language"] == {"en": 64, "sw": 32}
    assert evaluation_lines(data)["other languages"] == [(0, 0.3), (2, 0.5), (3, 0.6)]
    assert gap_line(data) == ("accuracy", [(step, pytest.approx(gap)) for step, gap in ((0, 0.6), (2, 0.4), (3, 0.25))])
    assert "outside English rose from 30.0 % to 60.0 %" in words_of(report_workdirs([tmp_path])).replace("\xa0", " ")


def test_one_evaluation_at_the_end_is_no_comparison(tmp_path):
    make_workdir(tmp_path, summary=False)
    final = {name: value for name, value in evaluated(3, 0.85, 0.6).items() if name != "step"}
    (tmp_path / "final.json").write_text(json.dumps({"step": 3, "metrics": final}))
    data = read_run(tmp_path)
    assert pair(data.summary, "mean_non_english") == (None, 0.6)
    assert pair(data.summary, "gap_to_english") == (None, pytest.approx(0.25))
    assert result_sentence(data).replace("\xa0", " ") == (
        "Mean accuracy outside English is 60.0 %, 25.0 points behind English."
    )
    words_of(report_workdirs([tmp_path]))


def test_the_gap_of_the_reward_stands_in_for_that_of_accuracy():
    rows = [{"step": 1, "rewards/cosine/mean/en": 0.9, "rewards/cosine/mean/sw": 0.4, "rewards/cosine/mean/th": 0.2,
             "rewards/cosine/mean": 0.5, "rewards/cosine/answer/mean": 0.7}]  # fmt: skip
    assert gap_line(ReportData(metrics=tuple(rows))) == ("reward", [(1, pytest.approx(0.6))])
    assert part_lines(rows) == {"cosine": [(1, 0.5)], "cosine, answer": [(1, 0.7)]}
    assert gap_line(ReportData(metrics=metrics(3))) == ("reward", [])


def test_an_evaluation_is_reported_with_its_own_intervals(tmp_path):
    (tmp_path / "eval.json").write_text(json.dumps(EVALUATION))
    (tmp_path / "responses.jsonl").write_text(json.dumps(ANSWER) + "\n")
    summary = evaluation_summary(EVALUATION)
    assert summary["languages"]["th"] == {
        "after": 0.4, "intervals": {"after": [0.34, 0.46]}, "before": 0.3, "change": [0.02, 0.18],
    }  # fmt: skip
    path = report_workdirs([tmp_path])
    text, words = path.read_text(encoding="utf-8"), words_of(path).replace("\xa0", " ")
    assert '<span class="gain up">+10.0</span>' in text and '<span class="gain soft">\u22121.0</span>' in text
    assert "bootstrap intervals" in words and "mgsm, native-cot" in words and "ลีน่ามี 4 ห่อ" in words
    assert "Right answer" in words and "English pivot" not in words and "Not on this page" not in words
    assert "5 of 500 1.0 % Thai 2.0 % “a b <c>”" in words


def test_audits_and_checks_are_tables(tmp_path):
    (tmp_path / "audit.json").write_text(json.dumps(AUDIT))
    missing = {"benchmarks": {"mgsm": EVALUATION["contamination"], "xcopa": {"not_checked": "no hub"}}}
    (tmp_path / "contamination.json").write_text(json.dumps(missing))
    path = report_workdirs([tmp_path])
    text, words = path.read_text(encoding="utf-8"), words_of(path)
    assert "Can the reward be cheated?" in words and "worst 0.600 0.970" in words
    assert text.count('class="down"') == 2, "0.6 in its row and among the worst"
    assert "xcopa – – no hub" in words


def test_a_quickstart_s_curves_are_those_of_its_run(tmp_path):
    make_workdir(tmp_path / "rl", summary=False)
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    data = read_run(tmp_path)
    assert len(data.metrics) == 3 and len(data.samples) == 2 and data.summary["seed"] == 17
    assert not data.config and any("config.json" in name for name in data.missing)


def test_filters_and_translation_of_samples(tmp_path):
    make_workdir(tmp_path, samples=False)
    rows = [sample(1, "ar", completion="الجواب هو ١٢", translation="The answer is 12."), sample(1, "te")]
    (tmp_path / "samples" / "step_1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = report_workdirs([tmp_path])
    text, words = path.read_text(encoding="utf-8"), words_of(path)
    assert "Its translation The answer is 12." in words and words.count("Its translation") == 1
    for key in ("by-language", "by-step", "reward-from", "reward-to", "by-order"):
        assert f'id="{key}"' in text and f'at("{key}")' in text
    assert '<dd dir="auto" lang="ar">الجواب هو ١٢</dd>' in text


def test_pictures_of_several_lines_and_given_intervals():
    chart = lines_chart("c", "reward", {"a": [(1, 0.0), (2, 1.0)], "b <": [(1, 1.0)]})
    assert chart.count("<circle") == 2 and "c1" in chart and "a: from 0 to 1; b &lt;: from 1 to 1." in chart
    assert chart.count('class="key c') == 2
    bars = accuracy_bars("b", "x", {"after": 0.4}, Intervals("bootstrap", {"after": (0.34, 0.46)}), 250)
    assert "After 40.0\u00a0%; 95 % bootstrap intervals 34.0\u00a0% to 46.0\u00a0%, 250 problems." in bars
    assert bars.count("<rect") == 1


def test_the_small_picture(tmp_path):
    from PIL import Image

    file = write_picture(tmp_path / "p.png", ReportData(summary=SUMMARY))
    picture = Image.open(io.BytesIO(file.read_bytes()))
    assert picture.format == "PNG" and 350 < picture.width < 1200 and file.stat().length < 40_000
    with pytest.raises(DataError, match="No accuracies per language"):
        write_picture(tmp_path / "q.png", ReportData(metrics=metrics(2)))
