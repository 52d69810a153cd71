"""A user's reward function, by import path, called as TRL calls it: `f(prompts=, completions=, **columns)`."""

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
from pbrl_jax.rewards.attempt import OutOfTime, attempted
from pbrl_jax.rewards.inputs import RewardInputs
from pbrl_jax.text.equality import let_threads_verify
from pbrl_jax.text.prompts import as_messages


class TrainerState(NamedTuple):
    """What reward functions may ask of the trainer: the step, under the name that TRL's state has for it."""

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
            "Write package.module:function, with the package on PYTHONPATH."
        ) from error
    if not callable(function):
        raise ConfigError(f"reward.functions names {path!r}, which is a {type(function).__name__} and no function.")
    return function


def make_user_reward(path: str, timeout: float = 0.0) -> Callable[[RewardInputs], Scores]:
    """The function, plain or async, as a reward.

    It receives what `arguments` makes of the rows, by keyword; a function without `**` receives only what it names.
    It returns one number per completion; None means that the reward does not apply to the row, NaN and infinities that
    it failed. A call that raises is made once more; a second exception, and a call that takes more than `timeout`
    seconds (0: no limit), make all rows invalid and are printed; the guard stops a run in which that goes on.

    Raises:
      RewardError: (when called) the wrong number of values, something that is no number, or sys.exit.
    """
    function = load_function(path)
    named = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in named.values())
    if timeout:
        let_threads_verify()

    def score(inputs: RewardInputs) -> Scores:
        count = len(inputs.completions)
        given = arguments(inputs)
        given = given if takes_all else {name: given[name] for name in named.keys() & given.keys()}
        found = attempted(path, lambda: (call(function, timeout, given),), count)
        if found is None:
            return Scores(jnp.zeros(count), jnp.zeros(count, bool), {})
        values, applies = as_numbers(path, found[0], count)
        finite = np.isfinite(values)
        return Scores(jnp.asarray(np.where(finite, values, 0.0)), jnp.asarray(finite), {}, jnp.asarray(applies))

    return score


def call(function: Callable, timeout: float, given: dict[str, Any]):
    """What `function` returns, awaited where it is async.

    Raises:
      OutOfTime: it took longer than `timeout` seconds. Its thread is left behind: Python cannot end one.
    """

    def run():
        found = function(**given)
        return asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found

    if not timeout:
        return run()
    outcome: queue.SimpleQueue = queue.SimpleQueue()

    def work():
        try:
            outcome.put((run(), None))
        except BaseException as error:  # handed to the caller, whatever it is
            outcome.put((None, error))

    threading.Thread(target=work, daemon=True, name="reward").start()
    try:
        found, error = outcome.get(timeout=timeout)
    except queue.Empty:
        raise OutOfTime(f"no answer within reward.timeout = {timeout:g} seconds") from None
    if error is not None:
        raise error
    return found


async def _awaited(found):
    return await found


def arguments(inputs: RewardInputs) -> dict[str, Any]:
    """The keyword arguments of a user's function: one value per row, and `trainer_state`.

    `prompts` and `completions` are strings, or lists of messages where the row is a conversation; `completion_ids` are
    the sampled tokens; then what the package knows of a row (`language` to `step`), and the further columns of the data
    under their own names.
    """
    rows = inputs.prompts
    further = [dict(prompt.columns) for prompt in rows]
    return {name: [row.get(name) for row in further] for name in {name: None for row in further for name in row}} | {
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


def as_numbers(path: str, found, count: int) -> tuple[np.ndarray, np.ndarray]:
    """What a function returned: float32 with NaN for None, infinite where float32 cannot hold it; and where it is not
    None.

    Raises:
      RewardError: no list of numbers, or one of another length.
    """
    if isinstance(found, Mapping | Set | str | bytes) or inspect.isgenerator(found) or inspect.isasyncgen(found) or (
        found is not None and (not hasattr(found, "__iter__") or getattr(found, "ndim", 1) == 0)
    ):  # fmt: skip
        raise RewardError(
            f"Reward {path} returned a {type(found).__name__}: {visible(str(found)[:80])}. Expected a list with one "
            "number (or None) per completion, in their order."
        )
    try:
        found = list(found)
        values = [np.nan if value is None else _number(value) for value in found]
    except (TypeError, ValueError, OverflowError) as error:
        raise RewardError(
            f"Reward {path} returned {type(found).__name__} that holds something other than numbers: {error}. "
            "Return one number (or None) per completion, in their order."
        ) from error
    if len(values) != count:
        raise RewardError(
            f"Reward {path} returned {len(values)} values for {count} completions. "
            "Return one number (or None) per completion, in their order."
        )
    with np.errstate(over="ignore"):
        values_B = np.array(values, np.float64).astype(np.float32)
    return values_B, np.array([value is not None for value in found], bool)


def _number(value) -> float:
    if isinstance(value, str | bytes):
        raise TypeError(f"{value!r} is text")
    return float(value)
