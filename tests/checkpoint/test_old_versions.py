"""What released versions left behind loads, reports and resumes: tests/fixtures/versions, one folder a version.

tests/make_old_version.py makes them. Bits are compared where jaxlib and the processor are those of the
making, numbers everywhere.
"""

import dataclasses
import importlib
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from digests import digest, machine
from tiny_policy import largest_difference, quick_compiles  # noqa: F401

from pbrl_jax import AlgoConfig, Config, __version__, cli, with_values
from pbrl_jax.checkpoint import list_checkpoints, older, read_meta, restore_checkpoint, save_checkpoint
from pbrl_jax.checkpoint.manifest import named_leaves
from pbrl_jax.config.fields import identity
from pbrl_jax.config.older import FIRST_FIELDS, FIRST_VERSION
from pbrl_jax.config.serialize import from_json
from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.paths import read_json_lines
from pbrl_jax.run.train import main as train
from pbrl_jax.weights.encoders import load_encoder
from pbrl_jax.weights.policies import load_policy

ROOT = Path(__file__).parents[1] / "fixtures" / "versions"
CONFIG = str(Path(__file__).parents[2] / "configs" / "tiny_cpu.py")
VERSIONS = sorted(folder.name for folder in ROOT.iterdir())
WORK = ("run", "cycle", "lora", "sft", "encoder")


@pytest.fixture(params=VERSIONS)
def left(request, tmp_path, monkeypatch):
    """What a version left behind, copied into the current directory, with its expected.json."""
    shutil.copytree(ROOT / request.param, tmp_path / "left")
    monkeypatch.chdir(tmp_path / "left")
    return json.loads(Path("expected.json").read_text())


@pytest.fixture
def loaded(monkeypatch):
    """Path -> hash of the arrays that the product restores, by folder."""
    module, found = importlib.import_module("pbrl_jax.checkpoint.restore"), {}
    load = module._load

    def recording(folder, *arguments):
        restored = load(folder, *arguments)
        found[str(folder)] = {name: digest(leaf) for name, leaf in named_leaves(restored.tree)}
        return restored

    monkeypatch.setattr(module, "_load", recording)
    return found


def checkpoint(name: str) -> Path:
    return Path(list_checkpoints(f"{name}/checkpoints")[0][1])


def abstract(folder: Path) -> dict:
    """The tree of shapes that a checkpoint's own meta.json tells of."""
    tree: dict = {}
    for name, leaf in json.loads((folder / "meta.json").read_text())["leaves"].items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jax.ShapeDtypeStruct(leaf["shape"], leaf["dtype"])
    return tree


def resume(expected: dict, name: str) -> int:
    """The command that made the work directory, typed again."""
    verb = name if name in ("sft", "encoder") else "train"
    last = ["--train.max_steps", str(expected["last"][name])] if verb == "train" else []
    return cli.main([verb, CONFIG, "--workdir", name, *expected["settings"][name], *last])


def test_the_fixtures_are_small():
    assert VERSIONS
    sizes = [file.stat().st_size for file in ROOT.rglob("*") if file.is_file()]
    assert sum(sizes) < len(VERSIONS) * 1_000_000


@pytest.mark.parametrize("name", WORK)
def test_resumes_to_the_end_that_its_version_would_have_reached(left, loaded, name, capfd, caplog):
    """Every restored array is bit-equal, moments, step and rollout batch too; so are the last parameters, where the
    processor rounds alike. Another one may differ by half a percent of what training has moved."""
    folder, kind = checkpoint(name), "encoder" if name == "encoder" else "policy"
    store = {file: file.read_bytes() for file in Path().rglob("references.jsonl")}
    changed = older.describe(left["version"], {}, json.loads((folder / "meta.json").read_text())["meta"])
    assert resume(left, name) == 0
    told = "".join(capfd.readouterr())
    assert f"Resuming from {folder.name}." in told
    assert loaded[str(folder)].items() >= left["checkpoints"][name].items()
    assert {file: file.read_bytes() for file in Path().rglob("references.jsonl")} == store
    assert changed.partition(": ")[2] in caplog.text
    load = load_encoder if kind == "encoder" else load_policy
    params, ended = load(name).params, load(f"ended/{name}").params
    moved = largest_difference(load("reader" if kind == "encoder" else "start").params, ended)
    assert moved > 1e-3
    assert largest_difference(params, ended) <= (1e-6 if left["machine"] == machine() else 0.005 * moved)
    if left["machine"] == machine() and not changed:
        assert largest_difference(params, ended) == 0
        if name in left["last"]:
            final, known = (json.loads((Path(at) / name / "final.json").read_text()) for at in (".", "ended"))
            assert final["step"] == known["step"] == left["last"][name]
            assert final["params_sha256"] == known["params_sha256"]


def test_it_is_said_once_what_is_new(left, capfd):
    """One line about the configuration; an old name that is typed works."""
    if "path" not in json.loads(Path("lora/config.json").read_text())["pivot"]:
        pytest.skip("this version has no renamed field")
    shards = {file: file.read_bytes() for file in Path("shared").rglob("*.safetensors")}
    assert shards and resume(left, "lora") == 0
    told = "".join(capfd.readouterr())
    assert "--pivot.path is now --pivot.store; the old name still works." in told
    (line,) = re.findall(r"config\.json was written by pbrl_jax .*", told)
    assert line.startswith(f"config.json was written by pbrl_jax {left['version']}; pivot.path is now pivot.store; ")
    assert {file: file.read_bytes() for file in Path("shared").rglob("*.safetensors")} == shards, "embedded again"
    saved = json.loads(Path("lora/config.json").read_text())
    assert saved["version"] == __version__ and saved["pivot"]["store"] == "shared" and "path" not in saved["pivot"]
    assert json.loads((checkpoint("lora") / "meta.json").read_text())["version"] == __version__
    capfd.readouterr()
    assert resume(left, "lora") == 0
    assert "was written by" not in "".join(capfd.readouterr())


def test_model_folders_load(left):
    policy, encoder = load_policy("start"), load_encoder("reader")
    for model, name in ((policy, "start"), (encoder, "reader")):
        assert {path: digest(leaf) for path, leaf in named_leaves(model.params)} == left[name]
    np.testing.assert_allclose(np.asarray(encoder.embed([left["text"]]))[0], left["embedding"], atol=1e-6)


def test_evaluations_and_reports(left, monkeypatch):
    """The same evaluation is taken as it is, another one is refused; runs and evaluations have their page."""
    monkeypatch.setenv("PBRL_DATA", "data")
    asked, before = Path("evaluation/evaluation.json"), read_json_lines(Path("evaluation/responses.jsonl"))
    identity_before = asked.read_bytes()
    words = ["eval", "--policy", "start", "--workdir", "evaluation", *left["eval"]]
    result = json.loads(Path("evaluation/eval.json").read_text())
    assert cli.main(words) == 0 and cli.main([*words, "--seed", "1"]) == 1
    after = read_json_lines(Path("evaluation/responses.jsonl"))
    assert asked.read_bytes() == identity_before and len(after) == len(before) == 4
    assert all(row.items() <= graded.items() for row, graded in zip(before, after, strict=True)), "only new grades"
    again = json.loads(Path("evaluation/eval.json").read_text())
    assert result["languages"] == again["languages"]
    for name in ("run", "evaluation"):
        assert cli.main(["report", name]) == 0
        assert f"Written by pbrl_jax {__version__}." in Path(name, "report.html").read_text()
    rows = read_json_lines(Path("run/metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2]


@dataclasses.dataclass(frozen=True)
class LaterAlgo(AlgoConfig):
    later_field: float = identity(0.001)


@dataclasses.dataclass(frozen=True)
class LaterConfig(Config):
    algo: LaterAlgo = LaterAlgo()


def later_config(name: str, **algo) -> LaterConfig:
    """The configuration of a saved run, in a version that has another field."""
    config = from_json(Path(name, "config.json").read_text(), LaterConfig)
    return with_values(config, train={"max_steps": 3}, algo=algo)


def test_a_field_of_a_later_version_does_not_orphan_a_run(left, capfd):
    train(later_config("run"), "run")
    told = "".join(capfd.readouterr())
    assert "Resuming from step_00000002." in told and "new settings take their defaults: " in told
    assert "algo.later_field=0.001" in told
    assert json.loads(Path("run/config.json").read_text())["algo"]["later_field"] == 0.001
    assert json.loads(read_meta(checkpoint("run"))["config"])["algo"]["later_field"] == 0.001
    with pytest.raises(CheckpointError, match="algo.later_field: saved 0.001, now 0.5"):
        train(later_config("run", later_field=0.5), "run")


def test_arrays_that_a_later_version_adds(left, monkeypatch):
    """Filled, or None, where the table names them and the checkpoint is older; otherwise refused."""
    folder = checkpoint("run")
    tree = abstract(folder)
    tree["later"] = {"counts": jax.ShapeDtypeStruct((2, 3), jnp.int32), "weight": jax.ShapeDtypeStruct((4,), "float32")}
    with pytest.raises(CheckpointError, match=f"pbrl_jax {left['version']}, holds other arrays"):
        restore_checkpoint(folder, tree)
    monkeypatch.setattr(
        older, "ADDED", (older.Added("99.0", "later/counts", 1), older.Added("99.0", "later/weight", None))
    )
    restored = restore_checkpoint(folder, tree)
    assert restored.version == left["version"]
    np.testing.assert_array_equal(restored.tree["later"]["counts"], np.ones((2, 3), np.int32))
    assert restored.tree["later"]["counts"].dtype == jnp.int32 and restored.tree["later"]["weight"] is None
    known = left["checkpoints"]["run"]
    assert {name: digest(leaf) for name, leaf in named_leaves(restored.tree) if name in known} == known
    monkeypatch.setattr(older, "ADDED", (older.Added("0.0.1", "later/.*", 0),))
    with pytest.raises(CheckpointError, match="later/counts is not in the checkpoint"):
        restore_checkpoint(folder, tree)


def test_changed_numerics_are_said_in_one_line(left, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(
        older,
        "NUMERICS",
        tuple(older.Changed(*line) for line in (("0.0.1", "x"), (__version__, "sums in another order"), ("99.0", "y"))),
    )
    restore_checkpoint(checkpoint("run"), abstract(checkpoint("run")))
    found = [record.message for record in caplog.records if "pbrl_jax" in record.message]
    new = older.number(left["version"]) >= older.number(__version__)
    assert len(found) == (0 if new else 1)
    assert new or f"of pbrl_jax {left['version']}: {__version__} sums in another order." in found[0]
    caplog.clear()
    own = save_checkpoint(tmp_path, 1, {"x": jnp.ones(2)}, {}, keep=1)
    restore_checkpoint(own, {"x": jnp.ones(2)})
    assert not [record for record in caplog.records if "pbrl_jax" in record.message]


def test_the_first_fields_are_those_of_the_first_version():
    """Identities that were hashed then are made of them, in this order."""
    saved = json.loads((ROOT / FIRST_VERSION / "run" / "config.json").read_text())
    sections = {"Optim": "optim", "Contrastive": "contrastive", "Lora": "lora", "Dpo": "dpo", "Reward": "reward",
                "Rollout": "rollout"}  # fmt: skip
    assert {f"{name}Config": list(saved[section]) for name, section in sections.items()} == {
        name: fields.split() for name, fields in FIRST_FIELDS.items()
    }


def test_versions_compare_as_numbers():
    assert older.number("0.10.1") > older.number("0.9") and older.number("0.2.0") < older.number("1.0")
