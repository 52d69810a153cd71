"""What a run shows: a panel on a terminal, a line a step when piped; and W&B through a stand-in."""

import io
import json
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from pbrl_jax.core.errors import CheckpointError, ConfigError
from pbrl_jax.logs.live import LiveView, Pace, evaluation_line, plain_line, tokens_a_second
from pbrl_jax.logs.metrics import MetricWriter
from pbrl_jax.logs.samples import write_samples

ROW = {"reward": 0.5, "kl": 0.01, "num_tokens": 300, "step_time": 2.0, "language/consistency/sw": 0.25}
EVALUATION = {"eval/accuracy/en": 0.98, "eval/accuracy/sw": 0.405, "eval/mean_non_english": 0.405}


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def shown(view) -> str:
    paper = console(True)
    paper.print(view.panel())
    return paper.file.getvalue()


def test_time_left_leaves_out_the_slowest_step_which_compiled():
    pace = Pace(10)
    for step, seconds in enumerate((60.0, 2.0, 4.0), start=1):
        pace.add({"step_time": seconds})
        assert pace.left(step) == {1: "", 2: "16 s", 3: "21 s"}[step]  # 8 x 2 s; 7 x 3 s
    assert pace.left(10) == "" and Pace(0).left(1) == ""


def test_a_plain_line_has_speed_and_time_left():
    pace = Pace(5)
    for _ in range(2):
        pace.add(ROW)
    text = plain_line({"step": 2, **ROW}, pace).plain
    assert text == "step 2/5  reward 0.5  kl 0.01  step_time 2  tokens/s 150  left 6 s"
    assert tokens_a_second({"num_tokens": 3}) is None and tokens_a_second({"step_time": 1.0}) is None


def test_an_evaluation_is_one_line():
    assert evaluation_line(50, EVALUATION).plain == "evaluation at step 50  en 98.0  sw 40.5  mean without en 40.5"
    assert evaluation_line(50, {"eval/first": 1.0}) is None


def test_the_panel_shows_step_reward_languages_speed_and_time():
    pace = Pace(100)
    view = LiveView("train mine[/y]", pace, console(True))
    assert "the first step compiles" in shown(view)
    for step in (1, 2):
        row = {"step": step, **ROW}
        pace.add(row)
        view.update(row)
    view.update(EVALUATION)
    text = shown(view)
    for part in ("train mine[/y]", "step 2 of 100", "150 tokens/s", "3 min 16 s left", "reward", "0.5", "accuracy",
                 "98.0", "40.5", "right language", "25.0"):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize("terminal", [True, False])
def test_lines_are_for_pipes_and_the_panel_for_terminals(tmp_path, terminal):
    paper = console(terminal)
    with MetricWriter(tmp_path, console=paper, max_steps=2, live="train mine") as writer:
        writer.write_evaluation(0, EVALUATION)
        for step in (1, 2):
            writer.write(step, ROW)
    text = paper.file.getvalue()
    assert ("step 1/2  reward" in text) != terminal and ("train mine" in text) == terminal
    assert "evaluation at step 0" in text


def test_evaluations_have_rows_of_their_own_which_a_resume_cuts(tmp_path):
    with MetricWriter(tmp_path, console=console(False)) as writer:
        for step in (0, 5, 10):
            writer.write_evaluation(step, EVALUATION | {"eval/problems/en": step})
    with MetricWriter(tmp_path, console=console(False), resume_step=7):
        pass
    rows = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 5] and rows[1]["eval/problems/en"] == 5


def test_what_is_written_later_is_there_after_a_flush_and_raises_there(tmp_path):
    done = []
    writer = MetricWriter(tmp_path, console=console(False))
    for number in range(3):
        writer.later(done.append, number)
    writer.flush()
    assert done == [0, 1, 2], "one after the other"

    def full():
        raise OSError("no space")

    writer.later(full)
    with pytest.raises(CheckpointError, match="Cannot write samples: no space"):
        writer.flush()
    writer.close()


@pytest.fixture
def wandb(monkeypatch):
    calls = []
    run = SimpleNamespace(log=lambda row, step: calls.append((step, row)), finish=lambda: calls.append("finish"))
    stand_in = SimpleNamespace(init=lambda **settings: calls.append(settings) or run)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return calls


def test_wandb_gets_the_rows_and_goes_on_in_the_same_run(tmp_path, wandb):
    for first in (1, 3):
        settings = {"resume_step": first - 1, "wandb": "mine", "config": '{"algo": {"beta": 0.1}}'}
        with MetricWriter(tmp_path / "run7", console=console(False), **settings) as writer:
            writer.write(first, {"reward": 0.5, "who": "sw"})
            writer.write(first + 1, {"reward": 0.75})
    starts = [call for call in wandb if isinstance(call, dict)]
    assert len(starts) == 2 and starts[0] == starts[1]
    assert starts[0]["project"] == "mine" and starts[0]["name"] == "run7" and starts[0]["resume"] == "allow"
    assert starts[0]["config"] == {"algo": {"beta": 0.1}} and len(starts[0]["id"]) == 12
    rows = [call for call in wandb if isinstance(call, tuple)]
    assert rows[:2] == [(1, {"step": 1, "reward": 0.5}), (2, {"step": 2, "reward": 0.75})] and len(rows) == 4
    assert wandb.count("finish") == 2


def test_a_run_that_starts_anew_is_a_new_one_in_every_tracker(tmp_path, wandb, services):
    """Before its first checkpoint a run starts at step 1 again; W&B drops rows of steps that it has."""
    for _ in range(2):
        with MetricWriter(tmp_path, console=console(False), tensorboard=True, wandb="a", trackio="b", mlflow="c") as w:
            w.write(1, {"reward": 0.5})
    ids = {call["id"] for call in wandb if isinstance(call, dict)}
    names = {more["name"] for called, _, more in services if called == "init"}
    starts = [more for called, _, more in services if called == "start_run"]
    assert len(ids) == len(names) == 2 and starts == [{"run_name": tmp_path.name}] * 2
    for file in (tmp_path / "tensorboard").iterdir():
        assert b"brain.Event:2" in file.read_bytes() and b"\x3a\x02\x08\x01" in file.read_bytes()  # SessionLog START


def test_wandb_never_asks_on_the_terminal(tmp_path, monkeypatch, wandb):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    seen = []
    start = sys.modules["wandb"].init
    monkeypatch.setattr(
        sys.modules["wandb"], "init", lambda **more: (seen.append(sys.stdin.isatty()), start(**more))[1]
    )
    before = sys.stdin
    MetricWriter(tmp_path, wandb="mine").close()
    assert seen == [False] and sys.stdin is before


def test_wandb_that_is_not_there_or_does_not_start(tmp_path, monkeypatch, wandb):
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_: 1 / 0)
    with pytest.raises(ConfigError, match="W&B does not start: division by zero.*WANDB_MODE=offline"):
        MetricWriter(tmp_path, wandb="mine")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"wandb is not installed. pip install -e '\.\[wandb\]'"):
        MetricWriter(tmp_path, wandb="mine")


@pytest.fixture
def services(monkeypatch):
    """Stand-ins of trackio and MLflow, and what they were told."""
    calls = []

    def noted(name, result=None):
        return lambda *words, **settings: (calls.append((name, words, settings)), result)[1]

    run = SimpleNamespace(info=SimpleNamespace(run_id="r1"))
    names = {"trackio": ("init", "log", "finish"),
             "mlflow": ("set_experiment", "start_run", "log_params", "log_metrics", "end_run")}  # fmt: skip
    for package, functions in names.items():
        stand_in = SimpleNamespace(**{f: noted(f, run if f == "start_run" else None) for f in functions})
        monkeypatch.setitem(sys.modules, package, stand_in)
    return calls


def test_trackio_and_mlflow_get_the_rows_and_go_on_in_the_same_run(tmp_path, services):
    for first in (1, 2):
        settings = {"resume_step": first - 1, "trackio": "mine", "mlflow": "theirs"}
        with MetricWriter(tmp_path / "run7", console=console(False), config='{"algo": {"beta": 0.1}}', **settings) as w:
            w.write(first, {"reward": 0.5, "who": "sw"})
    told = {name: [(words, more) for called, words, more in services if called == name] for name, *_ in services}
    (_, one), (_, two) = told["init"]
    assert one == two and one["project"] == "mine" and one["resume"] == "allow" and one["name"].startswith("run7-")
    assert [more for _, more in told["start_run"]] == [{"run_name": "run7"}, {"run_id": "r1"}]
    assert told["log_params"] == [(({"algo.beta": "0.1"},), {})] and told["set_experiment"][0] == (("theirs",), {})
    assert told["log"][0] == (({"step": 1, "reward": 0.5},), {"step": 1})
    assert told["log_metrics"][1] == (({"reward": 0.5},), {"step": 2})
    assert len(told["finish"]) == len(told["end_run"]) == 2


def test_services_get_sampled_responses_as_tables(tmp_path, wandb, services, monkeypatch):
    """Those that were written, column by column; parts of a reward as JSON."""
    row = {"step": 1, "prompt_id": 64, "language": "sw", "prompt": "?", "completion": "Sita.", "reference": "Six.",
           "reward": 0.5, "parts": {"cosine": 0.5}, "valid": True}  # fmt: skip
    logged = []
    monkeypatch.setattr(sys.modules["wandb"].init(), "log", lambda values, **more: logged.append((values, more)))
    for package in ("wandb", "trackio"):
        monkeypatch.setattr(sys.modules[package], "Table", SimpleNamespace, raising=False)
    monkeypatch.setattr(sys.modules["mlflow"], "log_table", lambda **more: logged.append(more), raising=False)
    monkeypatch.setattr(sys.modules["trackio"], "log", lambda values, **more: logged.append((values, more)))
    with MetricWriter(tmp_path, console=console(False), wandb="a", trackio="b", mlflow="c") as writer:
        writer.later(write_samples, tmp_path, 1, [row, row | {"language": "th"}], 1)
    (ours, commit), (trackios, step), mlflows = logged
    assert ours["samples"].columns == [*row] == trackios["samples"].columns == [*mlflows["data"]]
    assert ours["samples"].data == [(1, 64, "th", "?", "Sita.", "Six.", 0.5, '{"cosine": 0.5}', True)]
    assert trackios["samples"].data == [list(line) for line in ours["samples"].data]
    assert (commit, step, mlflows["artifact_file"]) == ({"commit": False}, {"step": 1}, "samples.json")
    assert mlflows["data"]["completion"] == ["Sita."]


def test_a_service_that_fails_later_does_not_end_the_run(tmp_path, services, monkeypatch, capsys):
    for name in ("log_metrics", "end_run"):
        monkeypatch.setattr(sys.modules["mlflow"], name, lambda *_, **__: 1 / 0)
    with MetricWriter(tmp_path, console=console(False), mlflow="theirs") as writer:
        for step in (1, 2):
            writer.write(step, {"reward": 0.5})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert capsys.readouterr().err.count("MLflow fails: division by zero. The run goes on") == 1
