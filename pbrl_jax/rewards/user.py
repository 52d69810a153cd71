"""The user's own reward functions, by import path, called as in TRL: `f(prompts=, completions=, **columns)`."""

import asyncio
import importlib
import inspect
import queue
import threading
from collections.abc import Callable, Mapping, Set
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from pbrl_jax.core.characters import visible
from pbrl_jax.core.errors import ConfigError, RewardError
from pbrl_jax.core.records import Scores
from pbrl_jax.rewards.attempt import OutOfTime, call_twice
from pbrl_jax.rewards.inputs import RewardInputs
from pbrl_jax.text.equality import let_threads_verify
from pbrl_jax.text.prompts import as_messages


class TrainerState(NamedTuple):
    """The state of the trainer that reward functions receive: the step, under TRL's name."""

    global_step: int


def load_function(path: str) -> Callable:
    """The function at `package.module:function`.

    Raises:
      ConfigError: the module cannot be imported or has no such function.
    """
    module_name, _, name = path.partition(":")
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
      RewardError: (when called) a wrong number of values, a value that is not a number, or sys.exit.
    """
    function = load_function(path)
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if timeout:
        let_threads_verify()

    def score(inputs: RewardInputs) -> Scores:
        count = len(inputs.completions)
        kwargs = arguments(inputs)
        kwargs = kwargs if takes_all else {name: kwargs[name] for name in parameters.keys() & kwargs.keys()}
        returned = call_twice(path, lambda: (call(function, timeout, kwargs),), count)
        if returned is None:
            return Scores(jnp.zeros(count), jnp.zeros(count, bool), {})
        values, applies = as_numbers(path, returned[0], count)
        finite = np.isfinite(values)
        return Scores(jnp.asarray(np.where(finite, values, 0.0)), jnp.asarray(finite), {}, jnp.asarray(applies))

    return score


def call(function: Callable, timeout: float, kwargs: dict[str, Any]):
    """The result of `function`, awaited where it is async.

    Raises:
      OutOfTime: it took longer than `timeout` seconds. Its thread runs on: Python cannot end a thread.
    """

    def run():
        result = function(**kwargs)
        return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result

    if not timeout:
        return run()
    outcome: queue.SimpleQueue = queue.SimpleQueue()

    def work():
        try:
            outcome.put((run(), None))
        except BaseException as error:  # raised again in the caller's thread
            outcome.put((None, error))

    threading.Thread(target=work, daemon=True, name="reward").start()
    try:
        result, error = outcome.get(timeout=timeout)
    except queue.Empty:
        raise OutOfTime(f"no answer within reward.timeout = {timeout:g} seconds") from None
    if error is not None:
        raise error
    return result


async def _awaited(result):
    return await result


def arguments(inputs: RewardInputs) -> dict[str, Any]:
    """The keyword arguments of a user's function: one value per row, and `trainer_state`.

    `prompts` and `completions` are strings, or lists of messages if the row is a conversation; `completion_ids` are the
    sampled tokens; then the fields of each row (`language` to `step`), and the other columns of the data under their
    own names.
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
        "answer": [p.answer for p in rows],
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
