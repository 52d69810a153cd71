"""The report's tables of an evaluation: what eval.json says is on the page, and a change that may be chance is grey."""

import json
import re

import pytest
from report_pages import Page
from report_pages import graded_rows as rows

from pbrl_jax.eval.metrics_table import compare, summary
from pbrl_jax.report.evaluation import COLUMNS, LENGTHS, against_section, numbers_section
from pbrl_jax.report.write import report_workdirs

BEFORE, NOW = rows(en=8, sw=1, xx=4), rows(en=8, sw=9, xx=5)


def words_of(html: str) -> str:
    return re.sub(r"\s+", " ", Page(f"<body>{html}</body>").words).replace("\xa0", " ").strip()


def test_every_number_of_a_language_is_on_the_page():
    words = words_of(numbers_section(summary(rows(samples=2, en=8, sw=9), seen=("en", "sw"))))
    assert (
        "language accuracy 95 % interval problems lm eval strict pass@1 mean@1 maj@1 pass@2 mean@2 maj@2 no answer "
        "not announced truncated right language code switch tokens characters" in words
    )
    assert "lines pass" not in words, "nothing was measured"
    sampled = " ".join(["80.0 %"] * 6)
    found = re.search(r"English en 80\.0 % \d+\.\d to \d+\.\d 10 70\.0 % (.*?) Swahili", words)
    assert found[1] == f"{sampled} 10.0 % 0.0 % 10.0 % 80.0 % 0.0 % 3 4"
    assert "seen in training, without English sw 90.0 %" in words and "unseen" not in words
    assert "worst language, Swahili 90.0 %" in words and "all languages 85.0 %" in words
    assert numbers_section({}) == ""


def test_columns_are_names_of_the_evaluation():
    written = summary(rows(sw=3))["languages"]["sw"]
    assert {name for name, _ in (*COLUMNS, *LENGTHS)} <= set(written)


def test_gains_over_earlier_evaluations():
    result = summary(NOW) | {"against": {"base": compare(BEFORE, NOW), "sft <1>": compare(NOW, NOW)}}
    html = against_section(result)
    words = words_of(html)
    found = re.search(r"Swahili sw 10\.0 % 90\.0 % \+80\.0 (\S+ to \S+) \+800\.0 % < 0\.001 0\.008", words)
    assert found and not found[1].startswith("\u2212"), "2 * 0.5 ** 8 = 0.0078"
    assert '<span class="up">+80.0</span>' in html and '<span class="soft">+10.0</span>' in html
    assert "xx 40.0 % 50.0 % +10.0" in words and "xx xx" not in words
    assert "all but English 25.0 % 70.0 % +45.0" in words and "English keeps 100.0 % of its accuracy." in words
    assert "sft <1>" in words and "all but English 70.0 % 70.0 % +0.0" in words
    assert against_section(summary(NOW)) == ""


@pytest.mark.parametrize("compared", [False, True])
def test_on_the_page_of_a_work_directory(tmp_path, compared):
    result = {"benchmark": "mgsm", "protocol": "direct"} | summary(NOW)
    if compared:
        result |= {"against": {"base": compare(BEFORE, NOW)}, "against_base": compare(BEFORE, NOW)}
    (tmp_path / "eval.json").write_text(json.dumps(result))
    words = Page(report_workdirs([tmp_path]).read_text("utf-8")).words
    assert "The numbers" in words and ("Gain over earlier evaluations" in words) == compared
