"""A user's reward function: what it receives, and every way in which it can go wrong."""

import asyncio
import json
import math
import signal
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny_world import problem_prompts, reward_inputs, tokenizer

from pbrl_jax.core.errors import ConfigError, RewardError
from pbrl_jax.data.load import dataset_fingerprint
from pbrl_jax.data.sources import table
from pbrl_jax.rewards.user import TrainerState, arguments, make_user_reward

PROMPTS = problem_prompts(1, ("en", "sw"))
TEXTS = ["The answer is 20.", "Jibu ni 20."]


@pytest.fixture
def call(monkeypatch):
    """call(function) -> Scores of TEXTS under the function, found by import path."""

    def run(function, timeout=0.0, prompts=PROMPTS, texts=TEXTS):
        module = types.ModuleType("own_rewards")
        module.function = function
        monkeypatch.setitem(sys.modules, "own_rewards", module)
        return make_user_reward("own_rewards:function", timeout)(reward_inputs(prompts, texts))

    return run


def test_it_receives_prompts_completions_and_columns(call):
    """The lengths of the texts are its rewards; every column has one value per row."""
    seen = {}

    def function(prompts, completions, **columns):
        seen.update(columns, prompts=prompts, completions=completions)
        return [len(text) for text in completions]

    scores = call(function)
    assert scores.value_B.tolist() == [17.0, 11.0] and scores.valid_B.all()
    assert seen == {
        "prompts": [p.question for p in PROMPTS],
        "completions": TEXTS,
        "language": ["en", "sw"],
        "answer": ["20", "20"],
        "reference": [PROMPTS[0].reference.text] * 2,
        "question_en": [PROMPTS[0].question] * 2,
        "prompt_id": [p.id for p in PROMPTS],
        "step": [3, 3],
        "completion_ids": [[*tokenizer().encode(text), *tokenizer().eos_ids] for text in TEXTS],
        "trainer_state": TrainerState(3),
    }
    assert seen["trainer_state"].global_step == 3


@pytest.mark.parametrize("timeout", [0.0, 30.0])
def test_arguments_come_by_name_in_whatever_order_and_number(call, timeout):
    """17 and 11 characters; the lengths of the prompts would be others."""
    assert call(lambda completions, prompts, **_: [len(text) for text in completions], timeout).value_B.tolist() == [
        17,
        11,
    ]
    assert call(lambda completions: [len(text) for text in completions], timeout).value_B.tolist() == [17, 11]
    scores = call(lambda *, step, language: [len(code) + at for code, at in zip(language, step, strict=True)])
    assert scores.value_B.tolist() == [5, 5]


def test_further_columns_of_the_data_arrive_by_name(tmp_path, call):
    """Those that mean something else to a reward stay behind; a row without the column has None."""
    rows = [
        {"question": "Uzito?", "question_en": "Weight?", "answer": "4", "unit": "kilo", "step": 7, "prompt": "x"},
        {"question": "Urefu?", "question_en": "Length?", "answer": "5", "note": {"a": [1]}},
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prompts = table.rows(str(tmp_path / "data.jsonl"), "train", ("sw",), 0, 0)
    seen = {}

    def function(completions, unit, **columns):
        seen.update(columns)
        return [float(u is not None and u in text) for text, u in zip(completions, unit, strict=True)]

    assert call(function, prompts=prompts, texts=["kilo 4", "mita 5"]).value_B.tolist() == [1, 0]
    assert seen["note"] == [None, {"a": [1]}] and seen["step"] == [3, 3] and "prompt" not in seen
    assert call(lambda question: [len(text) for text in question], prompts=prompts).value_B.tolist() == [6, 6]
    # Runs of versions without such columns resume on the same table.
    bare = [prompt._replace(columns=()) for prompt in prompts]
    assert dataset_fingerprint(prompts) == dataset_fingerprint(bare) != dataset_fingerprint(bare[:1])


def test_a_whole_solution_arrives_whole_and_cells_are_its_own(tmp_path, call):
    """The verifiable reward reads 1250 and 7; a function may look for the #### itself."""
    rows = [
        {"question": "A?", "answer": 1250, "tags": ["x"]},
        {"question": "B?", "answer": "3 + 4\n#### 7", "tags": ["y"]},
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prompts = table.rows(str(tmp_path / "data.jsonl"), "train", ("sw",), 0, 0)
    assert [prompt.answer for prompt in prompts] == ["1250", "7"]

    def function(completions, answer, tags):
        assert answer == ["1250", "3 + 4\n#### 7"]
        return [float(len(cell.pop())) for cell in tags]

    for _ in range(2):  # an emptied list would fail at the second call
        assert call(function, prompts=prompts).value_B.tolist() == [1, 1]


def test_an_argument_that_is_no_column_stops_the_run(call):
    with pytest.raises(RewardError, match="own_rewards:function needs the argument 'anwser'.*Did you mean 'answer'"):
        call(lambda completions, anwser, weight=1, **_: [0, 0])


def test_none_does_not_apply_and_is_no_failure(call):
    """Three states: a value, no opinion, a failure."""
    scores = call(lambda completions: [None, math.nan])
    assert scores.applies_B.tolist() == [False, True] and scores.failed_B.tolist() == [False, True]
    scores = call(lambda completions: iter([0.5, None]))
    assert scores.valid_B.tolist() == [True, False] and not scores.failed_B.any()
    scores = call(lambda completions: 1 / 0)
    assert scores.failed_B.all()


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -math.inf, np.float32("nan"), 1e300])
def test_what_is_not_finite_is_invalid_and_the_other_row_is_kept(call, bad):
    """1e300 is finite in float64 only: in float32 it would be a valid infinity."""
    scores = call(lambda prompts, completions, **_: [bad, 0.25])
    assert scores.valid_B.tolist() == [False, True]
    assert scores.value_B.tolist() == [0, 0.25]


@pytest.mark.parametrize("values", [np.array([1.0, 2.0]), (True, 2), [np.int64(1), np.float16(2)]])
def test_all_kinds_of_numbers_are_numbers(call, values):
    assert call(lambda prompts, completions, **_: values).value_B.tolist() == [1, 2]


def test_an_exception_makes_the_rows_invalid_and_is_shown(call, capsys):
    def function(prompts, completions, **_):
        raise KeyError("no such column")

    scores = call(function)
    assert not scores.valid_B.any() and scores.value_B.tolist() == [0, 0]
    shown = capsys.readouterr().err
    assert "own_rewards:function" in shown and "2 rows" in shown and "no such column" in shown


def test_a_call_that_raises_once_is_made_again(call, capsys):
    errors = [ConnectionError("reset by peer")]

    def function(completions):
        if errors:
            raise errors.pop()
        return [0.5, 0.25]

    assert call(function).value_B.tolist() == [0.5, 0.25]
    shown = capsys.readouterr().err
    assert "own_rewards:function raised ConnectionError: reset by peer. It is called once more." in shown


@pytest.mark.parametrize("timeout", [0.0, 30.0])
def test_a_reward_that_leaves_the_program_is_named(call, timeout):
    with pytest.raises(RewardError, match=r"own_rewards:function called sys.exit\(3\)"):
        call(lambda completions: sys.exit(3), timeout)


def yields(completions):
    yield from (0.5, 0.25)


@pytest.mark.parametrize("returned, kind", [
    (lambda completions: {0: 0.5, 1: 0.25}, "dict"), (yields, "generator"), (lambda completions: 0.5, "float"),
    (lambda completions: np.array(0.5), "ndarray"), (lambda completions: {0.5, 0.25}, "set"),
])  # fmt: skip
def test_what_is_no_list_is_named(call, returned, kind):
    """The keys of a dict are numbers, too, and a generator's errors would come too late."""
    with pytest.raises(RewardError, match=f"own_rewards:function returned a {kind}: .*Expected a list with one"):
        call(returned)


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0, 3.0], []])
def test_a_wrong_count_is_an_error(call, values):
    with pytest.raises(RewardError, match=f"returned {len(values)} values for 2 completions"):
        call(lambda prompts, completions, **_: values)


NO_NUMBERS = (["good", "bad"], ["1", "2"], "12", None, 1.0, [[1.0, 2.0], [3.0, 4.0]], [10**400, 1])


@pytest.mark.parametrize("values", NO_NUMBERS)
def test_what_is_no_number_is_an_error(call, values):
    with pytest.raises(RewardError, match="own_rewards:function"):
        call(lambda prompts, completions, **_: values)


def test_a_function_that_is_not_there_is_refused_at_the_start(tmp_path, monkeypatch):
    (tmp_path / "torn_rewards.py").write_text("def f(:\n")
    (tmp_path / "good_rewards.py").write_text("weight = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "leaving_rewards.py").write_text("import sys\nsys.exit(0)\n")
    for path in ("leaving_rewards:f", "no_such_module:f", "good_rewards:f", ":f", "torn_rewards:f", "good_rewards:"):
        with pytest.raises(ConfigError, match="package.module:function"):
            make_user_reward(path)
    with pytest.raises(ConfigError, match="given to run_training in another process. Give it again"):
        make_user_reward("pbrl_inline_rewards:gone")
    with pytest.raises(ConfigError, match="int and no function"):
        make_user_reward("good_rewards:weight")


@pytest.mark.parametrize("timeout", [0.0, 30.0])
def test_the_wrong_count_of_an_async_function_stops_the_run(call, timeout):
    async def one(prompts, completions, **_):
        return [1.0]

    with pytest.raises(RewardError, match="1 values for 2 completions"):
        call(one, timeout)


def test_an_async_function_is_awaited(call):
    async def later(prompts, completions, **_):
        await asyncio.sleep(0.01)
        return [0.25] * len(prompts)

    for timeout in (0.0, 30.0):
        scores = call(later, timeout)
        assert scores.valid_B.all() and (scores.value_B == 0.25).all()


@pytest.mark.parametrize("wait", ["sleep", "async"])
def test_a_call_that_takes_too_long_is_invalid_and_says_so(call, capsys, wait):
    async def forever(prompts, completions, **_):
        await asyncio.sleep(5)

    slow = forever if wait == "async" else lambda prompts, completions, **_: time.sleep(5)
    start = time.monotonic()
    scores = call(slow, 0.2)
    assert time.monotonic() - start < 4
    assert not scores.valid_B.any() and "reward.timeout = 0.2" in capsys.readouterr().err


def test_a_function_may_set_alarms_of_its_own(call):
    """As readers of answers do, row by row; alarms work in the main thread alone."""

    def function(completions):
        values = []
        for text in completions:
            before = signal.signal(signal.SIGALRM, lambda *_: 1 / 0)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            try:
                time.sleep(0.5 if text == TEXTS[1] else 0)
                values.append(1)
            except ZeroDivisionError:
                values.append(0.25)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
        return values

    assert call(function, 30.0).value_B.tolist() == [1, 0.25]


def test_a_limit_holds_where_a_function_catches_exceptions_row_by_row(call):
    def function(completions):
        values = []
        for _ in completions:
            try:
                time.sleep(2)
            except Exception:
                values.append(0)
        return values

    start, before = time.monotonic(), signal.getsignal(signal.SIGUSR2)
    assert not call(function, 0.1).valid_B.any() and time.monotonic() - start < 3.5
    assert signal.getsignal(signal.SIGUSR2) == before


def test_off_the_main_thread_a_limit_holds_too(call):
    with ThreadPoolExecutor(1) as pool:
        assert not pool.submit(call, lambda completions: time.sleep(1), 0.1).result().valid_B.any()


def test_async_calls_share_one_event_loop(call):
    """A client that a function keeps belongs to the loop of its first call; a notebook's loop runs already."""
    loops = set()

    async def function(completions):
        loops.add(asyncio.get_running_loop())
        return [1, 2]

    async def in_a_notebook():
        return call(function).value_B.tolist()

    assert call(function, 30.0).value_B.tolist() == asyncio.run(in_a_notebook()) == [1, 2] and len(loops) == 1


def test_an_exception_behind_a_time_limit_is_printed(call, capsys):
    def broken(prompts, completions, **_):
        raise ValueError("no service")

    assert not call(broken, 30.0).valid_B.any()
    assert "no service" in capsys.readouterr().err


def test_conversations_arrive_as_lists_of_messages():
    """As TRL passes them; rows of text stay texts."""
    talk = problem_prompts(1, ("sw",))[0]._replace(turns=(("system", "Be short."), ("user", "Ngapi?")))
    given = arguments(reward_inputs([talk, talk._replace(turns=())], ["18", "3"]))
    assert given["prompts"][0] == [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Ngapi?"}]
    assert given["completions"] == [[{"role": "assistant", "content": "18"}], "3"]
    assert given["prompts"][1] == talk.question


def test_the_parts_of_a_reference_are_columns_too(tmp_path, call):
    """`reference` is both of them; a function may name either."""
    row = {"question": "A?", "reference_reasoning": "1 + 1", "reference_answer": "2", "answer": "2"}
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    prompts = table.rows(str(tmp_path / "data.jsonl"), "train", ("sw",), 0, 0) * 2

    def function(completions, reference_answer, **columns):
        assert columns["reference_reasoning"] == ["1 + 1"] * 2
        return [float(text) for text in reference_answer]

    assert call(function, prompts=prompts).value_B.tolist() == [2, 2]
