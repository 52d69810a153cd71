"""docs/REPRODUCTION.md says what each run costs: its table is what `pbrl plan` gives by hand now."""

import re

import jax
import pytest
from source_tree import ROOT

from pbrl_jax import Config, ConfigError, MeshConfig, with_values
from pbrl_jax.config.supervised import STAGES
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.plan import programs
from pbrl_jax.plan.analytic import Sizes, update_estimate
from pbrl_jax.plan.chips import CHIPS, parse_topology
from pbrl_jax.plan.hlo import Cost
from pbrl_jax.plan.programs import Need
from pbrl_jax.plan.roofline import estimate_plan, make_plan, meshes, single_changes, sizes_on
from pbrl_jax.plan.shapes import run_models
from pbrl_jax.plan.stages import as_update, estimate_stage
from pbrl_jax.run.assemble import check_start
from pbrl_jax.run.config_file import load_config, override
from pbrl_jax.run.plan import main as plan
from pbrl_jax.run.plan import print_expected

PAGE = (ROOT / "docs" / "REPRODUCTION.md").read_text("utf-8")
#: | what | pbrl plan CONFIG --topology T FLAGS | GB | s at least | s expected | device hours |
ROW = re.compile(
    r"^\| [^|]+ \| `pbrl plan (\S+) --topology (\S+)([^`|]*)` \|" + r" ([\d,.]+) \|" * 4 + "$", re.MULTILINE
)


def costs(path: str, topology: str, flags: str) -> tuple[float, float, float, float]:
    """(GB of a device, seconds of a step at least, and expected, device hours of all steps) of a run."""
    words, where = flags.split(), parse_topology(topology)
    verb = words.pop(words.index("--verb") + 1) if "--verb" in words else "train"
    config = override(load_config(str(ROOT / path)), [word for word in words if word != "--verb"], path)
    check_start(config, where.chips)
    models, steps = run_models(config), config.train.max_steps
    if verb == "train":
        found = estimate_plan(config, models, where)
    else:
        steps = getattr(config, STAGES[verb]).steps
        needs = estimate_stage(config, models, sizes_on(config, where), verb)
        found = make_plan(as_update(config, verb), {"train": needs["train"]}, where.chip)
    assert found.fits
    hours = found.expected_seconds * steps * where.chips / 3600
    return found.held / 1e9, found.step_seconds, found.expected_seconds, hours


ROWS = ROW.findall(PAGE)


def test_every_trained_run_of_the_page_has_its_costs():
    trained = set(re.findall(r"^pbrl (?:train|sft) (\S+)", PAGE, re.MULTILINE))
    assert trained and not trained - {path for path, *_ in ROWS}


@pytest.mark.parametrize("path, topology, flags, held, least, expected, hours", ROWS)
def test_the_costs_are_those_of_the_plan(path, topology, flags, held, least, expected, hours):
    written = [float(number.replace(",", "")) for number in (held, least, expected, hours)]
    assert costs(path, topology, flags) == pytest.approx(written, rel=0.01, abs=0.06)


def test_the_hours_of_a_run(capsys):
    """Steps on one rollout share it; a stage samples before its steps, not at each."""
    chip = CHIPS["h100"]
    second = Need(1.0, 1.0, Cost(0.0, chip.bandwidth * chip.memory_share))
    run = make_plan(Config(), {"generate": second, "update": second}, chip)
    print_expected(run, 2, 7200)
    print_expected(run, 2, 7200, 4)
    stage = make_plan(Config(), {"generate": second, "train": second}, chip)
    print_expected(stage, 2, 7200)
    one, several, own = capsys.readouterr().out.splitlines()
    assert "2 s a step" in one and one.endswith("take 4.0 hours, 8 device hours.")
    assert "2 s a rollout with its 4 steps" in several and several.endswith("take 1.0 hours, 2 device hours.")
    assert "1 s a step" in own and own.endswith("take 2.0 hours, 4 device hours.")
    assert stage.as_json()["expected_seconds"] == pytest.approx(1) == stage.expected_seconds


def test_a_stage_is_planned_where_its_rows_divide():
    """Whatever the batches of prompts are, which it does not sample; an encoder writes no response tokens."""
    rows = {"batch_size": 64}
    config = with_values(load_config("tiny_cpu"), mesh={"data": 64}, sft=rows, contrastive=rows)
    assert plan(config, "h100:64", verb="sft").tokens_per_second > 0
    assert plan(config, "h100:64", verb="encoder").tokens_per_second == 0
    for verb in ("train", "dpo"):
        with pytest.raises(ConfigError, match="prompts of a microbatch cannot be shared evenly"):
            plan(config, "h100:64", verb=verb)


def test_updates_on_minibatches(monkeypatch):
    """Each is compiled and held alone, and all of them count; microbatches are parts of one."""
    algo = {"minibatch_prompts": 8, "num_iterations": 2}
    whole = with_values(load_config("tiny_cpu"), train={"prompts_per_step": 64}, algo={"num_iterations": 2})
    config = with_values(whole, algo=algo)
    models, sizes = run_models(config), Sizes(1, 1, 1)
    one, all_at_once = (update_estimate(c, models, sizes) for c in (config, whole))
    assert one.cost.flops == all_at_once.cost.flops and one.temp_bytes < all_at_once.temp_bytes / 2
    found = programs.Compiled(programs.Memory(0, 0, 0), Cost(1.0), Cost(), 0, None, "")
    monkeypatch.setattr(programs, "compile_ahead", lambda *_, **__: found)
    monkeypatch.setattr(programs, "update_faults", lambda *_: [])
    mesh = make_mesh(MeshConfig(1), jax.devices()[:1])
    assert programs.update_need(config, models, mesh, 0).cost.flops == 16
    where = parse_topology("h100:4")
    assert max(sizes.row_shards for sizes in meshes(config, models, parse_topology("h100:16"))) == 8
    odd = with_values(config, train={"prompts_per_step": 24}, algo={"minibatch_prompts": 12})
    assert "--train.microbatch-prompts 6" not in [flags for flags, _ in single_changes(odd, models, where)]
