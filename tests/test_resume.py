"""A run that is killed, stopped or finds damage ends as one that was left alone: same parameters, same log, bit by bit.

Real commands in processes of their own (see resume_driver), on configs/tiny_cpu.py with so little data that several
epochs end within the run.
"""

import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from resume_driver import ROOT
from tiny_policy import largest_difference

from pbrl_jax import Config
from pbrl_jax.checkpoint import list_checkpoints
from pbrl_jax.config.serialize import from_json
from pbrl_jax.core.paths import work_dir
from pbrl_jax.data.batches import make_sampler
from pbrl_jax.run.assemble import run_policy, training_prompts
from pbrl_jax.weights.policies import load_policy

STEPS = 7
SETTINGS = (
    f"--train.max-steps {STEPS} --train.save-steps 1 --train.save-total-limit 9 --data.limit 4 --eval.limit 1 "
    "--rollout.segment-length 4 --optim.learning-rate 3e-3 --optim.eps 1e-4 --log.no-tensorboard "
    "--log.compilation-cache= --train.no-packed --train.prompts-per-step 2"
).split()
KINDS = {
    "one update": [],
    "two updates": ["--algo.num-iterations", "2", "--train.packed"],
    "fused": ["--train.fused", "--reward.language-gate", "tokens", "--train.save-steps", "2"],
    "four prompts": ["--train.prompts-per-step", "4"],
}
"""What is run, beyond SETTINGS. Packed, an update has several programs, which every new process makes first."""

KILL, STOP = signal.SIGKILL, signal.SIGTERM
SAVED = "Stopped at step {step}, saved."


@pytest.fixture(scope="module")
def pbrl(driver):
    """(work directory, further arguments, what Driver.run takes) -> (status, output) of `pbrl train`."""

    def run(workdir, *more, config="configs/tiny_cpu.py", **how):
        return driver.run(["train", ROOT / config, "--workdir", workdir, *SETTINGS, *more], **how)

    return run


@pytest.fixture(scope="module")
def whole(pbrl, tmp_path_factory):
    """kind -> work directory of a run that nobody disturbed; each is made once."""
    made = {}

    def of(kind):
        if kind not in made:
            workdir = tmp_path_factory.mktemp("whole") / "run"
            status, output = pbrl(workdir, *KINDS[kind])
            assert status == 0, output
            made[kind] = workdir
        return made[kind]

    return of


def facts(workdir) -> dict:
    """All that a run leaves, except times: final.json, the rows of the log, the samples."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("step_time", "time/")
    return {
        "final": json.loads((workdir / "final.json").read_text()),
        "rows": [{name: value for name, value in row.items() if not name.startswith(timed)} for row in rows],
        "samples": {file.name: file.read_text() for file in (workdir / "samples").iterdir()},
    }


def params_of(workdir):
    return jax.device_get(load_policy(str(workdir)).params)


@pytest.fixture(scope="module")
def movement(whole):
    """Of the undisturbed run with one update."""
    return movement_of(whole("one update"))


def movement_of(workdir):
    """Largest change of a parameter from the start of an undisturbed run to its end."""
    config = from_json((workdir / "config.json").read_text(), Config)
    return largest_difference(
        run_policy(config, work_dir(workdir), training_prompts(config)).params, params_of(workdir)
    )


def test_the_undisturbed_run(whole, movement):
    """It changes its parameters, uses up several epochs, and has one row a step; otherwise all below proves nothing."""
    workdir = whole("one update")
    config = from_json((workdir / "config.json").read_text(), Config)
    sampler = make_sampler(training_prompts(config), config.train.prompts_per_step, config.data.english_share, 0)
    assert len(sampler.target) // sampler.target_size < STEPS - 1
    assert movement > 1e-3
    found = facts(workdir)
    assert [row["step"] for row in found["rows"]] == list(range(1, STEPS + 1)) and found["final"]["step"] == STEPS
    norms = {row["grad_norm"] for row in found["rows"]}
    assert len(norms) == STEPS and min(norms) > 0
    assert sorted(found["samples"]) == [f"step_{step}.jsonl" for step in range(1, STEPS + 1)]


#: (where it is held, or the file that is watched for; signal; step that the next command may resume from).
SCENARIOS = {
    "one update": [
        (("generate", 1), KILL, (0,)),
        (("update", 2), KILL, (1,)),
        (("generate", 2), KILL, (2,)),
        ("checkpoints/step_00000003.tmp-*", KILL, (2, 3)),
        (("generate", 2), STOP, None),
        (("update", 1), KILL, None),
        (("rename", 5, 1), KILL, (4,)),
        (("rename", 5, 2), KILL, (4,)),
        (("rename", 5, 3), KILL, (4,)),
        (("write", 5), KILL, (4,)),
        ("checkpoints/step_00000005/manifest.json", KILL, (5, 6)),
        (("update", 1), STOP, None),
    ],
    "two updates": [
        (("update", 2), KILL, (1,)),
        (("rename", 2, 3), KILL, (1,)),
        (("update", 2), STOP, (3,)),
        (("generate", 1), KILL, (4,)),
        (("update", 2), KILL, (5,)),
    ],
    "fused": [
        (("fused", 3), KILL, (2,)),
        (("rename", 4, 3), KILL, (2,)),
        (("fused", 3), STOP, (5,)),
    ],
}


@pytest.mark.parametrize("kind", SCENARIOS)
def test_killed_again_and_again(whole, pbrl, tmp_path, kind):
    """One run through all kills of its scenario, each in the phase that it names, ends as the undisturbed one."""
    workdir, known = tmp_path / "run", None
    for place, sent, then in SCENARIOS[kind]:
        how = {"watch": workdir / place} if isinstance(place, str) else {"hold": place}
        status, output = pbrl(workdir, *KINDS[kind], **how, kill=sent)
        check_start(output, known)
        assert status == (0 if sent == STOP else -KILL), output
        assert "Traceback" not in output
        if sent == STOP:
            saved = list_checkpoints(workdir / "checkpoints")[0][0]
            assert saved == STEPS or SAVED.format(step=saved) in output
        known = then
    status, output = pbrl(workdir, *KINDS[kind])
    check_start(output, known)
    assert status == 0, output
    assert facts(workdir) == facts(whole(kind))


def check_start(output: str, steps) -> None:
    """The command went on from one of these steps; None says nothing, 0 is the start."""
    if steps is None:
        return
    ways = [f"Resuming from step_{step:08d}." if step else "step 1/" for step in steps]
    assert any(way in output for way in ways), (steps, output)


def copy_of(workdir, target, last: int):
    """A run as it stood after step `last`: later checkpoints and final.json are gone, the log is still there."""
    shutil.copytree(workdir, target)
    (target / "final.json").unlink()
    for step, folder in list_checkpoints(target / "checkpoints"):
        if step > last:
            folder.rmtree()
    return target


def largest_file(folder):
    return max((file for file in Path(folder).rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def flip_a_bit(folder):
    content = bytearray(largest_file(folder).read_bytes())
    content[len(content) // 2] ^= 1
    largest_file(folder).write_bytes(content)


def truncate(folder):
    content = largest_file(folder).read_bytes()
    largest_file(folder).write_bytes(content[: len(content) // 2])


def take_the_manifest(folder):
    (folder / "manifest.json").unlink()


def test_damaged_checkpoints(whole, pbrl, tmp_path):
    """Two damaged ones are named and skipped; the run goes on from the one before and ends equal. All: refused."""
    workdir = copy_of(whole("one update"), tmp_path / "run", STEPS)
    checkpoints = workdir / "checkpoints"
    flip_a_bit(checkpoints / "step_00000007")
    truncate(checkpoints / "step_00000006")
    take_the_manifest(checkpoints / "step_00000005")
    status, output = pbrl(workdir)
    assert status == 0, output
    for step, reason in ((7, "does not match its checksum"), (6, "bytes, the manifest says"), (5, "manifest.json is")):
        line = next(line for line in output.splitlines() if f"step_0000000{step}: " in line)
        assert line.startswith("Skipped a damaged checkpoint: ") and reason in line
    check_start(output, (4,))
    assert facts(workdir) == facts(whole("one update"))
    for _, folder in list_checkpoints(checkpoints):
        flip_a_bit(folder)
    before = facts(workdir)
    status, output = pbrl(workdir, "--train.max-steps", "9")
    assert status == 1 and "Traceback" not in output
    assert "Error: Every checkpoint in" in output and "another --workdir" in output
    assert all(f"step_0000000{step}: " in output for step in range(1, STEPS + 1))
    assert facts(workdir) == before


def test_in_a_bucket(whole, pbrl, driver, tmp_path):
    """Trained, killed in the middle of a save, resumed and evaluated where nothing can be renamed or appended to."""
    workdir, data = tmp_path / "bucket" / "run", tmp_path / "mgsm"
    store = {"environment": {"FAKE_BUCKET": str(tmp_path / "bucket"), "PBRL_DATA": str(tmp_path)}}
    status, output = pbrl(workdir, watch=workdir / "checkpoints/step_00000003/meta.json", kill=KILL, **store)
    assert status == -KILL, output
    status, output = pbrl(workdir, **store)
    assert status == 0, output
    check_start(output, (2, 3))
    assert facts(workdir) == facts(whole("one update"))
    assert not [file for file in workdir.rglob("*") if ".tmp" in file.name]
    data.mkdir()
    for code, words in (("sw", "Ali ana {n} na {n}?"), ("en", "Ali has {n} and {n}?")):
        (data / f"mgsm_{code}.tsv").write_text("".join(f"{words.format(n=n)}\t{2 * n}\n" for n in range(4)))
    words = ["--benchmark", "mgsm", "--languages", "sw", "--max-completion-length", "6", "--compilation-cache", ""]
    evaluation = tmp_path / "bucket" / "evaluation"
    status, output = driver.run(["eval", "--policy", workdir, "--workdir", evaluation, *words], **store)
    assert status == 0, output
    assert json.loads((evaluation / "eval.json").read_text())["languages"]["sw"]["n"] == 4


@pytest.mark.parametrize(
    ("limit", "message"),
    [(300_000, "Could not save checkpoint"), (3_000, "File too large")],
)
def test_disk_that_fills_up(whole, pbrl, tmp_path, limit, message):
    """The kernel refuses a checkpoint, or a small file: one message, nothing lost, and the run can go on."""
    workdir = copy_of(whole("one update"), tmp_path / "run", 5)
    status, output = pbrl(workdir, limit=limit)
    assert status == 1 and "Traceback" not in output, output
    errors = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and message in errors[0] and "Free space on the disk" in errors[0]
    assert [step for step, _ in list_checkpoints(workdir / "checkpoints")] == [5, 4, 3, 2, 1]
    status, output = pbrl(workdir)
    assert status == 0, output
    check_start(output, (5,))
    assert facts(workdir) == facts(whole("one update"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--algo.beta", "0.02", "--train.seed", "1"],
         ["algo.beta: saved 0.01, now 0.02", "train.seed: saved 0, now 1", "--algo.beta 0.01"]),
        (["--data.limit", "3", "--data.languages", "en", "sw"],
         ["data.limit: saved 4, now 3", "data.languages: saved"]),
    ],
)  # fmt: skip
def test_another_experiment_is_refused(whole, pbrl, tmp_path, change, named):
    """Every field that differs is named, and nothing in the work directory has changed."""
    workdir = copy_of(whole("one update"), tmp_path / "run", 3)
    before = {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()}
    status, output = pbrl(workdir, *change)
    assert status == 1 and "Traceback" not in output
    assert "Error: The work directory holds a checkpoint of another experiment." in output
    assert all(words in output for words in [*named, "--workdir"]), output
    assert {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()} == before


def check_near(workdir, undisturbed, movement):
    """Equal up to rounding, which is a hundredth of what the run has changed."""
    change = largest_difference(params_of(workdir), params_of(undisturbed))
    assert 0 < 100 * change < movement
    rows, known = facts(workdir)["rows"], facts(undisturbed)["rows"]
    assert [row["step"] for row in rows] == [row["step"] for row in known]
    for row, other in zip(rows, known, strict=True):
        np.testing.assert_allclose(row["reward"], other["reward"], atol=1e-4)


def test_cadence_and_microbatch_may_change(whole, pbrl, tmp_path, movement):
    workdir = copy_of(whole("one update"), tmp_path / "run", 3)
    changes = ["--train.max-steps", "5", "--train.save-steps", "4", "--train.microbatch-prompts", "1"]
    status, output = pbrl(workdir, *changes)
    assert status == 0, output
    check_start(output, (3,))
    assert [step for step, _ in list_checkpoints(workdir / "checkpoints")] == [5, 4, 3, 2, 1]
    assert json.loads((workdir / "final.json").read_text())["step"] == 5
    status, output = pbrl(workdir)
    assert status == 0, output
    check_near(workdir, whole("one update"), movement)


@pytest.mark.serial
def test_mesh_may_change(whole, pbrl, tmp_path):
    """From one device to eight: rows over data and fsdp, parameters over fsdp and tensor."""
    undisturbed, settings = whole("four prompts"), KINDS["four prompts"]
    workdir = copy_of(undisturbed, tmp_path / "run", 4)
    flags = "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=600"
    mesh = ["--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"]
    status, output = pbrl(workdir, *settings, *mesh, flags=flags)
    assert status == 0, output
    check_start(output, (4,))
    assert "mesh data 2 x fsdp 2 x tensor 2 on 8 device(s)" in output
    check_near(workdir, undisturbed, movement_of(undisturbed))
