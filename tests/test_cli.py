"""Bad input through the command line: one clear message, exit status 1, no traceback, and nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from shared_programs import programs_made_once
from tiny_policy import quick_compiles  # noqa: F401  a fixture: the few runs here are compile time

import pbrl_jax
from pbrl_jax import cli
from pbrl_jax.checkpoint import list_checkpoints

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = os.path.join(ROOT, "configs", "tiny_cpu.py")
ONE_LANGUAGE = ["--data.source", "table", "--data.languages", "en", "--data.limit", "0", "--data.vocab-size", "400"]


@pytest.fixture(autouse=True)
def signals():
    """Commands take over SIGTERM and SIGINT; the test process gets them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def pbrl(capsys):
    """(verb, arguments) -> (exit status, standard output, standard error)."""

    def run(*arguments):
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as leaving:
            status = leaving.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def refused(pbrl, tmp_path):
    """Runs `pbrl train` on the tiny configuration and gives its one message."""

    def run(*settings, config=TINY, workdir=tmp_path / "run"):
        status, output, errors = pbrl("train", config, "--workdir", workdir, *settings)
        assert status == 1, output + errors
        assert errors.startswith("Error: ") and errors.count("\nError: ") == 0 and "Traceback" not in output + errors
        return errors

    return run


@pytest.fixture
def table(tmp_path):
    """Rows -> the settings that train on them as a JSON lines file."""

    def write(*rows, name="rows.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [*ONE_LANGUAGE, "--data.path", str(tmp_path / name)]

    return write


def row(number: int, **more) -> dict:
    """A row that nothing is wrong with."""
    return {"question": f"What is {number} and 2?", "reference": f"{number} and 2 make more. The answer is 9.", **more}


def test_usage_and_unknown_verb(pbrl):
    assert pbrl()[0] == pbrl("--help")[0] == 0
    assert all(f"  {verb} " in pbrl("-h")[1] for verb in cli.VERBS)
    status, _, errors = pbrl("trian")
    assert status == 1 and "Unknown verb 'trian'. Known: " in errors and "Did you mean 'train'?" in errors


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_every_verb(pbrl, verb):
    status, output, _ = pbrl(verb, "--help")
    without = ("generate", "report", "convert", "plan", "translate", "completion", "push")
    assert status in (0, None) and f"pbrl {verb}" in output and ("--workdir" in output or verb in without)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_missing_arguments(pbrl, verb):
    takes_config = f"  {verb} CONFIG --workdir" in cli.USAGE
    status, output, errors = pbrl(verb, *([TINY] if takes_config else []))
    assert status == 2 and "required" in errors and "Traceback" not in output + errors


def test_an_option_that_may_be_repeated_may_not_be_left_out(pbrl):
    status, output, errors = pbrl("generate", "--policy", "somewhere")
    assert status == 2 and errors.endswith("pbrl generate: --prompt is required.\n") and not output


def test_version(pbrl):
    """Said by the command, and the one that is installed."""
    assert pbrl("--version") == (0, f"pbrl_jax {pbrl_jax.__version__}\n", "")
    command = [sys.executable, "setup.py", "--version"]
    installed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert installed.split()[-1] == pbrl_jax.__version__


def test_names_of_older_versions(pbrl, tmp_path):
    """Typed, and in an experiment file: they work, and the new name is said."""
    path, dry = tmp_path / "x.py", ("--workdir", tmp_path / "run", "--dry-run")
    status, output, errors = pbrl("pivots", TINY, *dry, "--pivot.path", "shared")
    assert status == 0 and '"store": "shared"' in output, errors
    assert errors.count("--pivot.path is now --pivot.store; the old name still works.") == 1
    path.write_text("from pbrl_jax import Config, PivotConfig\ndef get_config():\n"
                    "    return Config(pivot=PivotConfig(source='file', path='r.jsonl'))\n")  # fmt: skip
    status, output, errors = pbrl("pivots", path, *dry)
    assert status == 0 and '"file": "r.jsonl"' in output, errors


def test_help_of_settings(pbrl):
    status, output, _ = pbrl("train", TINY, "--help")
    assert status == 0 and "--algo.beta" in output and "(default: 0.01)" in output


def test_settings_that_a_switch_turns_off_are_named_at_the_start(pbrl, tmp_path):
    dry = ("--workdir", tmp_path / "run", "--dry-run")
    status, _, errors = pbrl("train", TINY, *dry, "--policy.source", "elsewhere", "--policy.preset", "small")
    assert status == 1 and "policy.source: No model in 'elsewhere'" in errors and errors.count("Note: ") == 1
    assert "Note: policy.preset=small is not read: it belongs to policy.source random, and that is 'else" in errors
    assert "Note: " not in pbrl("train", TINY, *dry)[2]


def test_unknown_and_wrong_settings(pbrl, tmp_path):
    status, output, errors = pbrl("train", TINY, "--workdir", tmp_path / "run", "--algo.betta", "0.1")
    assert status == 2 and "--algo.betta" in output + errors and "--algo.beta FLOAT" in output + errors
    status, output, errors = pbrl("train", TINY, "--workdir", tmp_path / "run", "--algo.beta", "much")
    assert status == 2 and "--algo.beta" in output + errors and "'much'" in output + errors
    assert not (tmp_path / "run").exists()


def test_experiment_files(refused, tmp_path, monkeypatch):
    """No file, another kind of file, code that fails, no get_config, something else than a Config, damaged JSON."""
    monkeypatch.chdir(ROOT)
    assert "No config at 'configs/tiny.py'" in refused(config="configs/tiny.py")
    assert "Did you mean 'configs/tiny_cpu.py'?" in refused(config="configs/tiny.py")
    monkeypatch.chdir(tmp_path)
    assert "a Python file with get_config()" in refused(config="nothing.py")
    imports = "from pbrl_jax import Config, with_values\ndef get_config():\n    return "
    contents = {
        "a.toml": ("train: 1", "'a.toml' is no config. Expected a Python file"),
        "b.py": ("x = 1\ny = x / 0\n", "b.py, line 2: ZeroDivisionError"),
        "c.py": ("from pbrl_jax import AlgoConfig\nAlgoConfig(betta=1)\n", "c.py, line 2: TypeError"),
        "d.py": ("def get_config(:\n", "d.py: SyntaxError"),
        "e.py": ("x = 1\n", "e.py has no get_config()"),
        "f.py": ("def get_config():\n    return {}\n", "gave a dict, expected pbrl_jax.Config"),
        "g.json": ("{", "The config is not JSON"),
        "h.json": ("{}", "Missing key 'policy'"),
        "i.py": (f"{imports}with_values(Config(), data={{'languages': ['en']}})\n", "(list) for data.languages"),
        "j.py": (f"{imports}with_values(Config(), algo={{'num_generations': '8'}})\n", '"8" (str) for algo.num_gen'),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_text(content)
        assert message in refused(config=name)


@pytest.mark.parametrize(
    ("settings", "messages"),
    [
        (["--data.languages", "en", "swahili"], ["Unknown language 'swahili'", "Did you mean 'sw'?"]),
        (["--data.languages", "en", "fr"], ["'quickstart' has no language fr", "It has en, es"]),
        (["--reward.functions", "cosin"], ["Unknown reward 'cosin'", "Did you mean 'cosine'?", "package.module"]),
        (["--reward.functions", "cosine", "answer"], ["2 entries", "reward.reward_weights 1", "one weight per"]),
        (["--reward.functions", "no.such:thing"], ["'no.such:thing'", "cannot be imported", "PYTHONPATH"]),
        (["--data.source", "gms8k"], ["Unknown data source 'gms8k'", "Did you mean 'gsm8k'?"]),
        (["--eval.source", "gms8k"], ["Unknown data source 'gms8k'", "Did you mean 'gsm8k'?"]),
        (["--policy.preset", "tyni"], ["Unknown policy preset 'tyni'", "Did you mean 'tiny'?"]),
        (["--encoder.preset", "tyni"], ["Unknown encoder preset 'tyni'", "Did you mean 'tiny'?"]),
        (["--policy.attention", "flash"], ["Unknown attention kernel 'flash'", "Known: auto"]),
        (["--policy.source", "nowhere"], ["No policy in 'nowhere'", "pbrl sft"]),
        (["--algo.name", "grop"], ["Unknown algorithm 'grop'", "Did you mean 'grpo'?"]),
        (["--algo.loss-type", "dppo"], ["algo.loss_type is 'dppo'", "Did you mean 'dapo'?"]),
        (["--algo.num-generations", "1"], ["a group needs two samples", "--algo.num-generations 8"]),
        (["--algo.beta", "nan"], ["algo.beta is nan; expected at least 0"]),
        (["--train.seed", "-1"], ["train.seed is -1; expected from 0 to"]),
        (["--eval.batch-size", "0"], ["eval.batch_size is 0; expected at least 1"]),
        (["--optim.schedule", "cosine"], ["optim.schedule_steps > optim.warmup_steps", "--optim.schedule-steps N"]),
        (["--sft.steps", "9"], ["sft.warmup_steps is 20, expected fewer than sft.steps=9", "--sft.warmup-steps 0"]),
        (["--mesh.tensor", "3"], ["mesh.tensor=3 does not fit", "--mesh.data -1"]),
        (["--train.microbatch-prompts", "3"], ["does not divide train.prompts_per_step=4", "[1, 2, 4]"]),
        (["--train.fused"], ["train.fused cannot be used with: reward.language_gate hard", "--train.no-fused"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_settings_that_cannot_run(refused, tmp_path, settings, messages):
    found = refused(*settings)
    assert all(message in found for message in messages), found
    assert not (tmp_path / "run" / "checkpoints").exists() and not (tmp_path / "run" / "config.json").exists()


def test_rows_that_cannot_be_used(refused, table):
    """Empty, null and missing questions, a language nobody knows, no JSON: all by row number."""
    rows = [row(1), row(2, question=""), row(3, question=None), row(4, language="xx")]
    found = refused(*table(*({"language": "en", **values} for values in rows)))
    assert "row 2: question is empty" in found and "row 3: question is missing" in found
    assert "row 4: unknown language 'xx'" in found and "Correct or remove these rows" in found
    settings = table(row(1))
    with open(settings[-1], "a") as file:
        file.write("no json\n")
    assert "rows.jsonl: row 2: is no JSON" in refused(*settings)
    assert "No file" in refused(*ONE_LANGUAGE, "--data.path", "/no/such.jsonl")


def test_rows_that_do_not_fit(refused, table):
    """An over-long prompt, missing references, fewer rows than a batch."""
    rows = [row(number) for number in range(1, 7)]
    found = refused(*table(*rows, row(7, question="apple pear " * 80)))
    assert "1 of 7 prompts are longer than 48 tokens" in found and "row 7 (en)" in found
    assert "rollout.max_prompt_length" in found and "data.overlong_prompts to drop" in found
    found = refused(*table(*rows, {"question": "Without one?"}))
    assert "1 of 7 rows have no reference: row 7 (en" in found and "--pivot.source policy" in found
    found = refused(*table(*rows), "--train.prompts-per-step", "8")
    assert "A batch needs 8 different" in found and "the data set has 6" in found and "train.prompts_per_step" in found


@pytest.mark.parametrize("source", ["gsm8k", "mgsm"])
def test_benchmarks_without_their_folder(refused, monkeypatch, tmp_path, source):
    settings = ["--data.source", source, "--data.path=", "--data.languages", "en",
                "--data.split", "train" if source == "gsm8k" else "test"]  # fmt: skip
    monkeypatch.delenv("PBRL_DATA", raising=False)
    found = refused(*settings)
    assert "PBRL_DATA is not set" in found and f"the folder that holds {source}/" in found and "--data.path" in found
    monkeypatch.setenv("PBRL_DATA", str(tmp_path))
    assert f"holds no folder '{source}'" in refused(*settings)


def test_places_that_cannot_be_written(refused, pbrl, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in refused(workdir=tmp_path / "file")
    assert "Found an empty path" in refused(workdir="")
    status, _, errors = pbrl("report", tmp_path / "nothing")
    assert status == 1 and errors.startswith("Error: ") and "nothing" in errors


def test_generate_says_what_is_wrong(pbrl, tmp_path):
    for more, message in [
        (["--prompt", "Two?"], "No policy in"),
        (["--prompt", " "], "An empty --prompt"),
        (["--prompt", "Two?", "--language", "xx"], "Unknown language 'xx'"),
        (["--prompt", "Two?", "--max-completion-length", "0"], "--max-completion-length is 0; expected at least 1"),
        (["--prompt", "Two?", "--temperature", "-1"], "--temperature is -1.0; expected at least 0"),
    ]:
        status, _, errors = pbrl("generate", "--policy", tmp_path, *more)
        assert status == 1 and errors.startswith("Error: ") and message in errors, errors


def test_debug_and_unforeseen_errors(pbrl, monkeypatch, tmp_path):
    """--debug shows where; an exhausted device and a full disk get advice; a defect of ours hides nothing."""
    status, _, errors = pbrl("train", tmp_path / "none.py", "--workdir", tmp_path, "--debug")
    assert status == 1 and "Traceback" in errors and "Error: No config" in errors

    def verb(error):
        def run(_arguments):
            raise error

        return {**cli.VERBS, "train": run, "generate": run}

    monkeypatch.setattr(cli, "VERBS", verb(RuntimeError("RESOURCE_EXHAUSTED: out of memory")))
    assert pbrl("train")[0] == 1 and "--train.microbatch-prompts" in pbrl("train")[2]
    assert "fewer --prompt at a time" in pbrl("generate")[2] and set(cli.MEMORY) < set(cli.VERBS)
    monkeypatch.setattr(cli, "VERBS", verb(OSError(28, "No space left on device", "w/metrics.jsonl")))
    assert pbrl("train")[2].startswith("Error: w/metrics.jsonl: No space left on device. Free space")
    monkeypatch.setattr(cli, "VERBS", verb(KeyboardInterrupt()))
    assert pbrl("train")[0] == 130
    monkeypatch.setattr(cli, "VERBS", verb(RuntimeError("a defect")))
    with pytest.raises(RuntimeError, match="a defect"):
        pbrl("train")


USER_REWARD = '''
"""Reward functions whose answer depends on the step and on the file `mode` beside them."""
import pathlib

HERE = pathlib.Path(__file__).parent

def reward(prompts, completions, step, **columns):
    values = [len(text) % 5 / 5 for text in completions]
    if step[0] == 1:
        values[0], values[1], values[2] = None, float("nan"), float("inf")
    mode = (HERE / "mode").read_text()
    if step[0] < 2 or mode == "fine":
        return values
    if mode == "raises":
        raise ZeroDivisionError("in the reward")
    return {"few": values[:-1], "none": None, "text": ["good"] * len(values), "nan": [float("nan")] * len(values)}[mode]
'''


def test_rewards_of_a_user(pbrl, refused, tmp_path, monkeypatch):
    """Some invalid rows are left out and counted; too many stop the run with its state saved, and it can go on."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "some_rewards.py").write_text(USER_REWARD)
    workdir, mode, made = tmp_path / "run", tmp_path / "mode", {}

    def train():
        with programs_made_once(made):
            return pbrl("train", TINY, "--workdir", workdir, *settings)

    settings = ["--reward.functions", "some_rewards:reward", "--data.limit", "4", "--eval.limit", "1",
                "--train.max-steps", "3", "--train.save-steps", "9", "--log.no-tensorboard",
                "--guard.patience", "1"]  # fmt: skip
    for name, message in {
        "raises": "Step 3: 100% of the rewards are invalid",
        "nan": "more than guard.max_invalid_share = 50%. Rewards of this run: some_rewards:reward",
        "few": "returned 15 values for 16 completions",
        "none": "returned NoneType that holds something other than numbers",
        "text": "'good' is text",
    }.items():
        mode.write_text(name)
        status, output, errors = train()
        assert status == 1 and message in errors and errors.count("Error: ") >= 1, errors
        assert [step for step, _ in list_checkpoints(workdir / "checkpoints")] == [2]
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        assert [r["step"] for r in rows] == [1, 2] and not (workdir / "final.json").exists()
        assert "Resuming from step_00000002." in output or name == "raises"
    assert [r["reward/invalid_share"] for r in rows] == [0, pytest.approx(3 / 16)]
    # One None does not apply to its row, which no other reward scores; two of the other fifteen have failed.
    assert rows[1]["rewards/some_rewards:reward/valid_share"] == pytest.approx(13 / 15)
    assert 0 <= rows[1]["rewards/some_rewards:reward/mean"] <= 0.8
    mode.write_text("fine")
    status, output, errors = train()
    assert status == 0 and "Resuming from step_00000002." in output, errors
    assert json.loads((workdir / "final.json").read_text())["step"] == 3
    *_, shard = sorted((workdir / "pivots").rglob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-9])
    found = refused(*settings, workdir=workdir)
    assert f"{shard.parent} cannot be read" in found and "is truncated" in found and "Delete that folder" in found
    shutil.rmtree(shard.parent)
    assert train()[0] == 0
    sys.modules.pop("some_rewards")


def test_supervised_runs(pbrl, refused, tmp_path, monkeypatch):
    """`pbrl sft` stops and goes on like `pbrl train`; neither goes on from the other's checkpoints."""
    workdir = tmp_path / "run"
    settings = ["--sft.steps", "2", "--sft.warmup-steps", "1", "--sft.batch-size", "8", "--sft.english-rows", "20",
                "--sft.warm-rows-per-language", "2"]  # fmt: skip
    status, _, errors = pbrl("sft", TINY, "--workdir", workdir, *settings)
    assert status == 1 and "the shortest has" in errors and "--rollout.max-completion-length" in errors
    settings += ["--rollout.max-completion-length", "48"]
    with monkeypatch.context() as stopping:
        stopping.setattr("pbrl_jax.train.staged.stop_requested", lambda: True)
        status, output, errors = pbrl("sft", TINY, "--workdir", workdir, *settings)
        assert status == 0 and "Stopped, saved." in output and not (workdir / "policy").exists(), errors
    status, output, errors = pbrl("sft", TINY, "--workdir", workdir, *settings)
    assert status == 0 and "Resuming from step_00000001." in output and "--policy.source" in output, errors
    assert "holds checkpoints of `pbrl sft` or `pbrl encoder`" in refused(workdir=workdir)
    status, output, errors = pbrl("sft", TINY, "--workdir", workdir, *settings, "--train.seed", "1")
    assert status == 1 and "holds a checkpoint of other data, settings" in errors
