"""docs/checkpoints.md: every command can be typed, and the sizes are those of the presets."""

import functools

import jax
from readme_commands import commands_of, fenced_blocks, problem_with
from source_tree import ROOT

from pbrl_jax import cli
from pbrl_jax.core.trees import count_parameters
from pbrl_jax.models.decoder import init_decoder
from pbrl_jax.models.specs import DECODERS
from pbrl_jax.run import convert, generate

PAGE = (ROOT / "docs" / "checkpoints.md").read_text("utf-8")


def test_commands_can_be_typed(monkeypatch):
    """They parse, and what a verb refuses before it loads anything is not refused."""
    seen = []
    monkeypatch.setattr(generate, "main", lambda known: (generate.check(known), seen.append("generate")))
    monkeypatch.setattr(convert, "main", lambda *known: seen.append("convert"))
    found = [command for block in fenced_blocks(PAGE, "bash") for command in commands_of(*block)]
    for command in found:
        assert not (problem := problem_with(command, ROOT, cli.VERBS.__contains__)), problem
        assert cli.main(list(command.words[1:])) == 0, command.shown
    assert seen.count("generate") >= 3 and seen.count("convert") >= 3 and len(seen) == len(found)


def test_sizes_are_those_of_the_presets():
    rows = [line.strip("| ").split("|") for line in PAGE.splitlines() if line.startswith("| `")]
    rows = [[cell.strip(" `") for cell in row] for row in rows if row[0].strip(" `") in DECODERS]
    assert len(rows) == 6
    for name, count, *gigabytes in rows:
        shapes = jax.eval_shape(functools.partial(init_decoder, spec=DECODERS[name]), jax.random.key(0))
        assert count_parameters(shapes) == int(count.replace(",", ""))
        assert gigabytes == [f"{count_parameters(shapes) * size / 1e9:.1f}" for size in (2, 4, 20)]
