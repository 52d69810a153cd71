"""The guides: every command can be typed, every flag is one that its verb knows, links and settings exist."""

import re

import pytest
from readme_commands import commands_of, fenced_blocks, problem_with
from source_tree import ROOT

from pbrl_jax import Config, cli
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.run.check import field_value

GUIDES = (
    "REPRODUCTION", "data", "evaluation", "from_other_trainers", "guide_one_gpu", "guide_tpu_vm", "real_model_cpu",
    "troubleshooting",
)  # fmt: skip
PAGES = [ROOT / "docs" / f"{name}.md" for name in GUIDES]
MAIN_VERBS = ("eval", "harness", "convert", "translate", "plan", "generate", "dry_run")
CONFIG_VERBS = ("train", "sft", "dpo", "encoder", "translator", "pivots", "audit", "calibrate")


def commands(page) -> list:
    return [command for block in fenced_blocks(page.read_text("utf-8"), "bash") for command in commands_of(*block)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_can_be_typed(page, monkeypatch, tmp_path):
    """The verbs' mains are replaced, so that what is left is the parsing of what the page says."""
    import pbrl_jax.report.write
    import pbrl_jax.run.library

    called = []
    monkeypatch.setattr(pbrl_jax.report.write, "report_workdirs", lambda *_: called.append("report"))
    monkeypatch.setattr(pbrl_jax.run.library, "run_verb", lambda name, *_, **_options: called.append(name))
    for verb in MAIN_VERBS:
        module = __import__(f"pbrl_jax.run.{verb}", fromlist=["main"])
        monkeypatch.setattr(module, "main", lambda *_, verb=verb: called.append(verb))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    for command in commands(page):
        assert not (problem := problem_with(command, ROOT, cli.VERBS.__contains__)), f"line {command.line}: {problem}"
        words = list(command.words)
        if words[:2] == ["bash", "launch/tpu_vm.sh"] and len(words) > 3:
            words = ["pbrl", *words[3:]]
        if words[0] != "pbrl" or words[1] not in (*CONFIG_VERBS, *MAIN_VERBS, "report"):
            continue
        assert cli.main(words[1:]) == 0 and called.pop() in (words[1], "dry_run"), f"line {command.line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_and_links_exist(page):
    text = page.read_text("utf-8")
    sections = "|".join(Config.__dataclass_fields__)
    named = set(re.findall(rf"(?<![\w./-])((?:{sections})\.(?!json|py|md|png)[a-z_]+[a-z])\b(?![.(/])", text))
    if page.stem == "from_other_trainers":  # the last column is ours
        rows = [line.split("|")[-2] for line in text.splitlines() if line.startswith("| ")]
        named = set(re.findall(rf"`((?:{sections})\.[a-z_]+)", "\n".join(rows)))
        assert len(named) > 20
    for path in named:
        try:
            field_value(Config(), path)
        except (AttributeError, ConfigError):
            pytest.fail(f"{page.name} names the setting {path}, which does not exist")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_every_feature_of_ours_names_its_test():
    """The table against other trainers: what is claimed of this package stands beside a test file that exists."""
    text = (ROOT / "docs" / "from_other_trainers.md").read_text("utf-8").split("## Features")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) > 25 and {len(row) for row in rows} == {8}
    for feature, *_, here in rows[1:]:
        tests = re.findall(r"tests/[\w/]+\.py", here)
        assert here == "no" or (tests and all((ROOT / file).exists() for file in tests)), feature
        for verb in re.findall(r"`pbrl (\w+)`", here):
            assert verb in cli.VERBS, feature
