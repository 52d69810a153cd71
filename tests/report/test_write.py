"""The report: right numbers, whole HTML, nothing from outside, everything escaped, clear words on what is missing."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from report_pages import LANGUAGES, QUESTIONS, SUMMARY, Page, make_workdir, metrics, sample
from scipy.stats import binomtest

from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.eval.statistics import wilson_interval as wilson
from pbrl_jax.report.curves import CURVES
from pbrl_jax.report.data import CONTROLS, Intervals, accuracy_intervals, end_means, language_metrics, pair, series_of
from pbrl_jax.report.html import points, short_number
from pbrl_jax.report.page import result_sentence
from pbrl_jax.report.plots import accuracy_bars, accuracy_png, line_chart, moving_average, thin_out, tick_values
from pbrl_jax.report.samples import choose_samples
from pbrl_jax.report.write import ReportData, report_workdirs, write_report


def full() -> ReportData:
    return ReportData(
        title="Two & three",
        summary=SUMMARY,
        metrics=metrics(20),
        samples=tuple(sample(step, language) for step in (5, 10) for language in QUESTIONS),
        config={"algo": {"beta": 0.005, "loss_type": "grpo"}, "note": "a<b"},
    )


def written(tmp_path, data: ReportData) -> tuple[str, Page]:
    text = write_report(tmp_path / "report.html", data).read_text(encoding="utf-8")
    return text, Page(text)


def test_full_page_is_whole_and_self_contained(tmp_path):
    text, page = written(tmp_path, full())
    assert text.startswith("<!doctype html>") and "prefers-color-scheme: dark" in text and "viewport" in text
    assert page.outside == [] and not re.search(r"https?://|@import|url\(", text)
    assert len(page.ids) == len(set(page.ids))
    assert set(page.wanted) <= set(page.ids)
    assert all(p["role"] == "img" and "aria-labelledby" in p for p in page.pictures)
    for question in QUESTIONS.values():
        assert question in page.words


def test_page_says_the_numbers(tmp_path):
    _, page = written(tmp_path, full())
    words = re.sub(r"\s+", " ", page.words)
    assert "Mean accuracy outside English rose from 30.0 % to 50.0 % (+20.0 points)" in words
    assert "the gap to English narrowed from 69.0 to 48.0 points" in words
    assert "7 min 31 s" in words  # 451 s
    for cell in (
        "Shuffled references",
        "\u22129.0",
        "Gold answers",
        "61.0 %",
        "My <own>",
        "beta",
        "0.005",
        "pbrl train",
    ):
        assert cell in words
    # Seeds: means of (0.3, 0.4), (0.5, 0.5) and of English (0.98, 0.96).
    assert "mean 35.0 % 50.0 % +15.0 97.0 %" in words


def test_controls_are_those_of_the_quickstart(tmp_path):
    from pbrl_jax.quickstart.controls import CONTROLS as RUN

    assert list(CONTROLS) == list(RUN)
    _, page = written(tmp_path, ReportData(summary={**SUMMARY, "controls": dict.fromkeys(RUN, 0.5)}))
    assert all(text in page.words for both in CONTROLS.values() for text in both)


def test_curves_are_metrics_of_a_step():
    golden = json.loads((Path(__file__).parents[1] / "fixtures" / "golden_step.json").read_text())
    assert set(CURVES) - set(golden) == {"language/consistency"}, "known from the responses, not from the update"


def test_bars_and_captions_name_the_same_interval(tmp_path):
    own = {"languages": {"sw": {"before": 0.4, "after": 0.7, "intervals": {"after": [0.6, 0.8]}}}}
    assert accuracy_intervals(own, "sw") == ("bootstrap", {"after": (0.6, 0.8)})
    for summary, method in ((own, "bootstrap"), (SUMMARY, "Wilson")):
        text, page = written(tmp_path, ReportData(summary=summary))
        others = {"bootstrap", "Wilson"} - {method}
        assert f"The thin lines are 95\u00a0% {method} intervals" in page.words
        assert f"95 % {method} intervals" in text and not any(f"{other} intervals" in text for other in others)


def test_change_is_coloured_only_outside_of_chance(tmp_path):
    text, _ = written(tmp_path, full())
    assert '<span class="gain up">+30.0</span>' in text  # sw: 256 problems
    assert '<span class="gain soft">\u22121.0</span>' in text  # en: intervals overlap
    low, high = wilson(0.98, 1024)[1], wilson(0.99, 1024)[0]
    assert high < low


def test_everything_foreign_is_escaped(tmp_path):
    evil = '<script>alert("x")</script>'
    row = sample(1, 'sw" onclick="x', prompt=evil, completion=evil, reference=evil, parts={evil: 1.0})
    data = ReportData(
        title=evil, summary={"languages": {evil: {"before": 0.1, "after": 0.2}}, "controls": {evil: 0.5}, "seed": evil},
        metrics=({"step": 1, evil: 1.0, "reward": 0.5, f"time/{evil}": 1.0},), samples=(row,),
        config={evil: {evil: evil}}, missing=(evil,), next_commands=((evil, evil),),
    )  # fmt: skip
    text, page = written(tmp_path, data)
    assert evil not in text and text.count("<script>") == 1
    assert 'onclick="x' not in text
    assert page.words.count(evil) >= 12


@pytest.mark.parametrize("names", [["summary"], ["metrics"], ["summary", "samples"], ["metrics", "config"]])
def test_parts_are_optional(tmp_path, names):
    data = full()
    _, page = written(tmp_path, ReportData(**{name: getattr(data, name) for name in names}))
    assert ("Language by language" in page.words) == ("summary" in names or "metrics" in names)
    assert ("What the policy says" in page.words) == ("samples" in names)
    assert ("Resolved config" in page.words) == ("config" in names)


def test_metrics_alone_say_where_the_reward_went(tmp_path):
    data = ReportData(metrics=metrics(20))
    # First two rows 0.1 and 0.2, last two 1.9 and 2.0.
    assert result_sentence(data) == "The reward went from 0.15 to 1.95 over 20 steps; accuracies were not measured."
    assert "cosine reward" in written(tmp_path, data)[1].words
    assert "1 training steps" in written(tmp_path, ReportData(metrics=metrics(1)))[1].words


def test_nothing_to_report_says_what_to_type(tmp_path):
    with pytest.raises(DataError, match="pbrl train"):
        write_report(tmp_path / "r.html", ReportData())
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    "summary, found",
    [
        ({"languages": {"sw": {"before": 43.0, "after": 0.5}}}, "'before' of language 'sw' is 43.0"),
        ({"languages": {"sw": {"before": 0.4}}}, "'after' of language 'sw' is None"),
        ({"languages": {"sw": 0.4}} | {"languages": {"sw": "high"}}, "is 'high'"),
        ({"languages": {"sw": {"before": 0.4, "after": float("nan")}}}, "is nan"),
        ({"languages": LANGUAGES, "controls": {"answer": "good"}}, "Control 'answer'"),
        ({"languages": LANGUAGES, "seconds": {"sft": "long"}}, "Stage 'sft'"),
    ],
)
def test_bad_summary_is_named(tmp_path, summary, found):
    with pytest.raises(DataError, match=re.escape(found)):
        write_report(tmp_path / "r.html", ReportData(summary=summary))


def test_workdir_is_read_whole(tmp_path):
    make_workdir(tmp_path / "run")
    path = report_workdirs([tmp_path / "run"])
    assert path == tmp_path / "run" / "report.html"
    words = Page(path.read_text(encoding="utf-8")).words
    assert "Not on this page" not in words and "ลีน่ามี 4 ห่อ" in words and "Report of run" in words
    assert words.index("step 9") < words.index("step 10")


def test_workdir_names_what_is_missing(tmp_path):
    make_workdir(tmp_path / "run", summary=False, samples=False)
    words = Page(report_workdirs([tmp_path / "run"]).read_text(encoding="utf-8")).words
    assert "Not on this page" in words and "summary.json" in words and "samples/" in words


def test_workdir_errors(tmp_path):
    with pytest.raises(DataError, match="No work directory at .*absent"):
        report_workdirs([tmp_path / "absent"])
    with pytest.raises(DataError, match="Nothing to report in .*summary.json.*metrics.jsonl"):
        report_workdirs([tmp_path])
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(DataError, match="summary.json is not JSON"):
        report_workdirs([tmp_path])
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(DataError, match="holds a list"):
        report_workdirs([tmp_path])


@pytest.mark.parametrize("right, count", [(0, 5), (8, 10), (256, 256), (101, 256)])
def test_wilson_interval_is_scipys(right, count):
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(wilson(right / count, count), (expected.low, expected.high), atol=1e-7)


def test_pair_takes_given_numbers_before_worked_out_ones():
    assert pair(SUMMARY, "mean_non_english") == pytest.approx((0.3, 0.5))
    assert pair(SUMMARY, "gap_to_english") == pytest.approx((0.69, 0.48))
    assert pair(SUMMARY, "sw") == (0.4, 0.7)
    assert pair({**SUMMARY, "gap_to_english": {"before": 0.5, "after": 0.1}}, "gap_to_english") == (0.5, 0.1)
    assert pair({"before": 0.2, "after": 0.3}, "mean_non_english") == (0.2, 0.3)
    assert pair(0.4, "mean_non_english") == (None, 0.4)
    assert pair({}, "gap_to_english") == (None, None)


def test_series_leave_out_what_is_no_number():
    values = (1.0, None, True, float("inf"), "2")
    rows = [{"step": n, "a": value} for n, value in enumerate(values, start=1)] + [{"a": 2}]
    assert series_of(rows, "a") == [(1, 1.0)]
    assert language_metrics([{"a/sw": 1.0, "b/x": 1.0, "sw": 2.0}], ["x"]) == {"sw": ["a/sw"], "x": ["b/x"]}
    assert end_means([(n, float(n)) for n in range(40)]) == (1.5, 37.5)


def test_small_helpers_by_hand():
    assert tick_values(0.21, 0.79) == [0.2, 0.4, 0.6, 0.8]
    assert tick_values(-0.04, 0.05) == [-0.05, 0.0, 0.05]
    assert tick_values(5, 5) == [4.5, 5.0, 5.5]
    assert tick_values(-0.20000001788, -0.2) == [-0.23, -0.22, -0.21, -0.2, -0.19, -0.18, -0.17]
    assert tick_values(2.4e-14, 5.5e-12) == [0.0, 2e-12, 4e-12, 6e-12]
    assert moving_average([0.0, 3.0, 6.0, 0.0], 1) == [1.5, 3.0, 3.0, 3.0]
    assert moving_average([1.0, 2.0], 0) == [1.0, 2.0]
    assert [short_number(v) for v in (0.12345, -2.0, 1234, 21034, 3.2e6)] == ["0.123", "\u22122", "1234", "21k", "3.2M"]
    assert points(-0.0123) == "\u22121.2"
    kept = thin_out([(n, 0.0) for n in range(1000)], 10)
    assert len(kept) == 10 and kept[0][0] == 0 and kept[-1][0] == 999


def test_pictures_say_in_words_what_they_show():
    intervals = Intervals("Wilson", {"before": wilson(0.4, 256), "after": wilson(0.7, 256)})
    bars = accuracy_bars("b", "Accuracy in Swahili", {"before": 0.4, "after": 0.7}, intervals, 256, 0.98)
    assert "Before 40.0\u00a0%, after 70.0\u00a0%" in bars and "256 problems" in bars
    assert 'width="84.8"' in bars and 'width="148.4"' in bars  # 0.4 and 0.7 of 212
    chart = line_chart("c", "reward", [(1, 0.0), (2, 1.0)])
    assert "From 0 at step 1 to 1 at step 2" in chart
    assert 'd="M46.0 166.0L348.0 8.0"' in chart
    assert "NaN" not in line_chart("d", "flat", [(3, 2.0)])


def test_a_picture_without_matplotlib_is_refused_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"matplotlib, which is not installed. Use: pip install -e '.\[plots\]'"):
        accuracy_png(SUMMARY)


def test_many_samples_are_thinned_over_the_steps():
    rows = [sample(step, language) for step in range(100) for language in QUESTIONS]
    kept = choose_samples(rows, 40)
    assert len(kept) <= 40
    assert kept[0]["step"] == 0 and kept[-1]["step"] == 99 and len({row["step"] for row in kept}) == 10
    assert choose_samples(rows[:8], 40) == rows[:8]
    evaluation = [sample(0, language) for language in QUESTIONS for _ in range(50)]
    kept = choose_samples(evaluation, 40)
    assert [row["language"] for row in kept] == [language for language in QUESTIONS for _ in range(10)]
    large = [sample(step, language) for step in (1, 50) for language in QUESTIONS for _ in range(50)]
    assert [row["step"] for row in choose_samples(large, 40)] == [1] * 20 + [50] * 20
