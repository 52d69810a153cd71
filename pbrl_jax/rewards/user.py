"""A user's reward function, by import path, with TRL's signature: `f(prompts, completions, **columns)`."""

import asyncio
import importlib
import inspect
import queue
import sys
import threading
import traceback
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from pbrl_jax.core.errors import ConfigError, RewardError
from pbrl_jax.core.records import Scores
from pbrl_jax.rewards.inputs import RewardInputs
from pbrl_jax.text.equality import let_threads_verify


def load_function(path: str) -> Callable:
    """The function at `package.module:function`.

    Raises:
      ConfigError: the module cannot be imported or has no such function.
    """
    module_name, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # a user's module may raise anything while it is imported
        raise ConfigError(
            f"reward.functions names {path!r}, which cannot be imported ({type(error).__name__}: {error}). "
            "Write package.module:function, with the package on PYTHONPATH."
        ) from error
    if not callable(function):
        raise ConfigError(f"reward.functions names {path!r}, which is a {type(function).__name__} and no function.")
    return function


def make_user_reward(path: str, timeout: float = 0.0) -> Callable[[RewardInputs], Scores]:
    """The function, plain or async, as a reward.

    It receives `prompts`, `completions` (strings) and the columns `language, answer, reference, question_en,
    prompt_id, step`. It returns one number per completion; None, NaN and infinities are invalid rows. An exception,
    and a call that takes more than `timeout` seconds (0: no limit), make the whole call invalid and are printed; the
    guard stops a run in which that goes on.

    Raises:
      RewardError: (when called) the wrong number of values, or something that is no number.
    """
    function = load_function(path)
    if timeout:
        let_threads_verify()

    def score(inputs: RewardInputs) -> Scores:
        count = len(inputs.completions)
        try:
            questions = [p.question for p in inputs.prompts]
            found = call(function, timeout, questions, list(inputs.completions), **columns(inputs))
        except Exception:  # a user's code may raise anything; the rows are invalid, never zero
            print(f"Reward {path} raised; its {count} rows are invalid:\n{traceback.format_exc()}", file=sys.stderr)
            return Scores(jnp.zeros(count), jnp.zeros(count, bool), {})
        values = as_numbers(path, found, count)
        finite = np.isfinite(values)
        return Scores(jnp.asarray(np.where(finite, values, 0.0)), jnp.asarray(finite), {})

    return score


def call(function: Callable, timeout: float, *arguments, **named):
    """What `function` returns, awaited where it is async.

    Raises:
      TimeoutError: it took longer than `timeout` seconds. Its thread is left behind: Python cannot end one.
    """

    def run():
        found = function(*arguments, **named)
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
        raise TimeoutError(f"no answer within reward.timeout = {timeout:g} seconds") from None
    if error is not None:
        raise error
    return found


async def _awaited(found):
    return await found


def columns(inputs: RewardInputs) -> dict[str, list]:
    """The further keyword arguments of a user's function, one value per row."""
    rows = inputs.prompts
    return {
        "language": [p.language for p in rows],
        "answer": [p.answer for p in rows],
        "reference": [None if p.reference is None else p.reference.text for p in rows],
        "question_en": [p.question_en for p in rows],
        "prompt_id": [p.id for p in rows],
        "step": [inputs.step] * len(rows),
    }


def as_numbers(path: str, found, count: int) -> np.ndarray:
    """What a function returned, as float32 with NaN for None; what is too large for float32 is infinite."""
    try:
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
        return np.array(values, np.float64).astype(np.float32)


def _number(value) -> float:
    if isinstance(value, str | bytes):
        raise TypeError(f"{value!r} is text")
    return float(value)
