"""The user's own reward functions, by import path, called as in TRL: `f(prompts=, completions=, **columns)`."""

import asyncio
import copy
import functools
import importlib
import inspect
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Set
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from pbrl_jax.core.characters import visible
from pbrl_jax.core.errors import ConfigError, RewardError, did_you_mean
from pbrl_jax.core.records import Scores
from pbrl_jax.rewards.attempt import OutOfTime, call_twice
from pbrl_jax.rewards.inputs import RewardInputs
from pbrl_jax.text.equality import let_threads_verify
from pbrl_jax.text.prompts import as_messages

INLINE = "pbrl_inline_rewards"
"""Module, of this process alone, of functions that `run_training` was given and that cannot be imported."""
LIMIT_SIGNAL: Any = getattr(signal, "SIGUSR2", None)
"""Ends a call in the main thread that takes too long. SIGALRM is left to the functions themselves."""


class TrainerState(NamedTuple):
    """The state of the trainer that reward functions receive: the step, under TRL's name."""

    global_step: int


def load_function(path: str) -> Callable:
    """The function at `package.module:function`.

    Raises:
      ConfigError: the module cannot be imported or has no such function.
    """
    module_name, _, name = path.partition(":")
    if module_name == INLINE and not hasattr(sys.modules.get(INLINE), name):
        raise ConfigError(
            f"reward.functions names {path!r}, a function that was given to run_training in another process. Give it "
            "again, as run_training(..., reward_functions=[...]), or put it into a module of its own."
        )
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything while it is imported
        raise ConfigError(
            f"reward.functions names {path!r}, which cannot be imported ({type(error).__name__}: {error}). "
            "Give package.module:function, with the package on PYTHONPATH."
        ) from error
    if not callable(function):
        raise ConfigError(f"reward.functions names {path!r}, which is a {type(function).__name__} and no function.")
    return function


def make_user_reward(path: str, timeout: float = 0.0) -> Callable[[RewardInputs], Scores]:
    """The function, plain or async, as a reward.

    It receives the keyword arguments of `arguments`; a function without `**` receives only those that it names. It
    returns one number per completion: None where the reward does not apply to the row, NaN or an infinity where it
    failed. A call that raises is repeated once. A second exception, or a call longer than `timeout` seconds (0: no
    limit), is printed and makes all rows invalid; the guard stops a run in which that continues.

    Raises:
      RewardError: (when called) an argument that is no column, a wrong number of values, a value that is not a number,
        or sys.exit.
    """
    function = load_function(path)
    let_threads_verify()

    def score(inputs: RewardInputs) -> Scores:
        count = len(inputs.completions)
        kwargs = wanted(path, function, inputs)
        # Its own copy: a function may change what it receives.
        returned = call_twice(path, lambda: (call(function, timeout, copy.deepcopy(kwargs)),), count)
        if returned is None:
            return Scores(jnp.zeros(count), jnp.zeros(count, bool), {})
        values, applies = as_numbers(path, returned[0], count)
        finite = np.isfinite(values)
        return Scores(jnp.asarray(np.where(finite, values, 0.0)), jnp.asarray(finite), {}, jnp.asarray(applies))

    return score


def wanted(path: str, function: Callable, inputs: RewardInputs) -> dict[str, Any]:
    """The keyword arguments that `function` takes.

    Raises:
      RewardError: it needs an argument that there is not.
    """
    kwargs = arguments(inputs)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of some compiled functions nothing is known
        return kwargs
    if any(parameter.name == "question" for parameter in parameters):  # under ** it is there as a column of its own
        kwargs = {"question": [prompt.question for prompt in inputs.prompts]} | kwargs
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [parameter.name for parameter in by_name if parameter.default is parameter.empty]
    if lacking := [name for name in needed if name not in kwargs]:
        raise RewardError(
            f"Reward {path} needs the argument {lacking[0]!r}, which is no column of the data. "
            f"{did_you_mean(lacking[0], kwargs)} Add the column, or give the argument a default."
        )
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return kwargs
    return {parameter.name: kwargs[parameter.name] for parameter in by_name if parameter.name in kwargs}


def call(function: Callable, timeout: float, kwargs: dict[str, Any]):
    """The result of `function`, awaited where it is async: in the caller's thread if that is the main thread, as
    functions may set alarms or use what belongs to a thread, else in one of its own.

    Raises:
      OutOfTime: it took longer than `timeout` seconds (0: no limit). A thread of its own runs on: Python cannot end it.
    """

    def run():
        result = function(**kwargs)
        return _awaited(result, timeout) if inspect.isawaitable(result) else result

    if not timeout:
        return run()
    if threading.current_thread() is threading.main_thread() and LIMIT_SIGNAL is not None:
        return _in_main_thread(run, timeout)
    outcome: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=lambda: outcome.put(_outcome(run)), daemon=True, name="reward").start()
    try:
        result, error = outcome.get(timeout=timeout)
    except queue.Empty:
        raise _out_of_time(timeout) from None
    if error is not None:
        raise error
    return result


class _Late(BaseException):
    """Raised inside a call that takes too long; no Exception, as functions catch those row by row."""


def _in_main_thread(run: Callable[[], Any], timeout: float):
    """run(), which a signal ends after `timeout` seconds, and again every second where it goes on."""
    ended, late, main = threading.Event(), threading.Event(), threading.main_thread().ident

    def interrupt(*_):
        if not ended.is_set():
            raise _Late

    def watch():
        wait = timeout
        while main is not None and not ended.wait(wait):
            late.set()
            signal.pthread_kill(main, LIMIT_SIGNAL)
            wait = 1.0

    before = signal.signal(LIMIT_SIGNAL, interrupt)
    watcher = threading.Thread(target=watch, daemon=True, name="reward limit")
    watcher.start()
    result = None
    try:
        try:
            result = run()
        finally:
            ended.set()
    except _Late:
        pass
    finally:
        ended.set()
        watcher.join()
        signal.signal(LIMIT_SIGNAL, before or signal.SIG_DFL)
    if late.is_set():
        raise _out_of_time(timeout)
    return result


def _out_of_time(timeout: float) -> OutOfTime:
    return OutOfTime(f"no answer within reward.timeout = {timeout:g} seconds")


def _outcome(run: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return run(), None
    except BaseException as error:  # raised again in the caller's thread
        return None, error


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all async functions, in a thread of its own: a client that a function keeps between its calls
    belongs to one loop, and a notebook's own loop is already running."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="async rewards").start()
    return loop


def _awaited(result, timeout: float):
    async def wait() -> tuple[Any, BaseException | None]:
        try:
            return await result, None
        except (Exception, SystemExit) as error:  # SystemExit would end the loop
            return None, error

    future = asyncio.run_coroutine_threadsafe(wait(), _loop())
    try:
        value, error = future.result(timeout or None)
    except TimeoutError:
        raise _out_of_time(timeout) from None
    finally:
        future.cancel()
    if error is not None:
        raise error
    return value


def arguments(inputs: RewardInputs) -> dict[str, Any]:
    """The keyword arguments of a user's function: one value per row, and `trainer_state`.

    `prompts` and `completions` are strings, or lists of messages if the row is a conversation; `completion_ids` are the
    sampled tokens; then the fields of each row (`language` to `step`), and the other columns of the data under their
    own names, unchanged; `answer` is the whole text where the data holds more than the answer.
    """
    rows = inputs.prompts
    columns = [dict(prompt.columns) for prompt in rows]
    return {name: [row.get(name) for row in columns] for name in {name: None for row in columns for name in row}} | {
        "prompts": [as_messages(p.turns) if p.turns else p.question for p in rows],
        "completions": [
            as_messages([("assistant", text)]) if p.turns else text
            for p, text in zip(rows, inputs.completions, strict=True)
        ],
        "completion_ids": [ids[: int(n)].tolist() for ids, n in zip(inputs.tokens_BR, inputs.lengths_B, strict=True)],
        "language": [p.language for p in rows],
        "answer": [row.get("answer", p.answer) for p, row in zip(rows, columns, strict=True)],
        "reference": [None if p.reference is None else p.reference.text for p in rows],
        "question_en": [p.question_en for p in rows],
        "prompt_id": [p.id for p in rows],
        "step": [inputs.step] * len(rows),
        "trainer_state": TrainerState(inputs.step),
    }


def as_numbers(path: str, returned, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [B] of the returned values, NaN for None and infinite outside float32's range; which are not None [B]).

    Raises:
      RewardError: `returned` is not a list of `count` numbers.
    """
    expected = "Expected a list with one number (or None) per completion, in their order."
    kind = type(returned).__name__
    if isinstance(returned, Mapping | Set | str | bytes) or inspect.isgenerator(returned) or (
        inspect.isasyncgen(returned)
        or (returned is not None and (not hasattr(returned, "__iter__") or getattr(returned, "ndim", 1) == 0))
    ):  # fmt: skip
        raise RewardError(f"Reward {path} returned a {kind}: {visible(str(returned)[:80])}. {expected}")
    try:
        returned = list(returned)
        values = [np.nan if value is None else _number(value) for value in returned]
    except (TypeError, ValueError, OverflowError) as error:
        raise RewardError(
            f"Reward {path} returned {kind} that holds something other than numbers: {error}. {expected}"
        ) from error
    if len(values) != count:
        raise RewardError(f"Reward {path} returned {len(values)} values for {count} completions. {expected}")
    with np.errstate(over="ignore"):
        values_B = np.array(values, np.float64).astype(np.float32)
    return values_B, np.array([value is not None for value in returned], bool)


def _number(value) -> float:
    if isinstance(value, str | bytes):
        raise TypeError(f"{value!r} is text")
    return float(value)
