"""The paper's runs on named machines: each starts there, and its docstring and docs/scaling.md hold a true plan."""

import re

import pytest
from source_tree import ROOT

from pbrl_jax.config.serialize import from_json, to_json
from pbrl_jax.plan.chips import parse_topology
from pbrl_jax.plan.roofline import USABLE, estimate_plan
from pbrl_jax.plan.shapes import run_models
from pbrl_jax.run.assemble import check_start
from pbrl_jax.run.config_file import load_config

FILES = {file.stem: file for file in ROOT.glob("configs/machines/*.py")}
MACHINES = {
    "llama31_8b_v5e_16": "v5litepod-16",
    "llama31_8b_v5p_8": "v5p-8",
    "llama31_8b_h200": "h200:1",
    "qwen3_32b_v5p_32": "v5p-32",
    "qwen3_32b_8xh100": "h100:8",
}
SCALING = (ROOT / "docs" / "scaling.md").read_text("utf-8")
#: A line of the plan's table: program, HBM GB, temporary GB, TFLOP, seconds, what binds, and where that is from.
LINE = re.compile(
    r"^    (generate|reward|update) +([\d.]+) +([\d.]+) +(\d+) +([\d.]+) +\w+ +(compiled|hand)$", re.MULTILINE
)


def test_every_machine_has_its_file():
    assert set(FILES) == set(MACHINES)


@pytest.mark.parametrize("name", MACHINES)
def test_the_plan_in_the_docstring(name):
    """By hand: the numbers that the plan gives now. Compiled: products as by hand within 10 %, and all of it fits."""
    config, where = load_config(str(FILES[name])), parse_topology(MACHINES[name])
    check_start(config, where.chips)
    assert from_json(to_json(config), type(config)) == config
    doc = FILES[name].read_text("utf-8").split('"""')[1]
    assert f"pbrl plan configs/machines/{name}.py --topology {MACHINES[name]}" in doc
    by_hand = estimate_plan(config, run_models(config), where)
    table = {program: (*map(float, numbers), source) for program, *numbers, source in LINE.findall(doc)}
    assert set(table) == {"generate", "reward", "update"} and by_hand.fits
    for program, (held, temporary, flops, seconds, source) in table.items():
        row = by_hand.rows[program]
        assert temporary < held < USABLE * where.chip.memory / 1e9
        if source == "hand":
            assert held == pytest.approx(row.need.hbm_bytes / 1e9, abs=0.06)
            assert temporary == pytest.approx(row.need.temp_bytes / 1e9, abs=0.06)
            assert seconds == pytest.approx(row.seconds, rel=0.01)
        assert flops == pytest.approx(row.need.cost.flops / 1e12, rel=0.1), program
    line = re.search(rf"^\| `{name}`, {MACHINES[name]} .*$", SCALING, re.MULTILINE)[0]
    written = re.findall(r"([\d.]+) GB, ([\d.]+) s", line)
    for (held, seconds), row in zip(written, by_hand.rows.values(), strict=True):
        assert float(held) == pytest.approx(row.need.hbm_bytes / 1e9, abs=0.06)
        assert float(seconds) == pytest.approx(row.seconds, abs=0.06)
    least, expected = map(float, line.split("|")[-3:-1])
    assert (least, expected) == pytest.approx((by_hand.step_seconds, by_hand.expected_seconds), rel=0.01)
