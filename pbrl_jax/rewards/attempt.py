"""Calls of reward functions: a call that raises is repeated once; if that raises too, its rows are invalid."""

import sys
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

from pbrl_jax.core.characters import visible
from pbrl_jax.core.errors import RewardError
from pbrl_jax.core.stopping import Interrupted, check_stop

Result = TypeVar("Result")

RETRY_SECONDS = 0.2
"""Pause between a call that raised and its repetition."""


class OutOfTime(TimeoutError):
    """A call took longer than reward.timeout. It is not repeated."""


def call_twice(
    name: str, call: Callable[[], Result], count: int, passed_on: tuple[type[Exception], ...] = ()
) -> Result | None:
    """The result of `call()`, which is repeated once after an exception; None if it raised twice, which is printed.

    Args:
      name: of the reward, for messages.
      count: number of rows, for messages.
      passed_on: exceptions that are raised at once, as a requested stop is.

    Raises:
      RewardError: the function called sys.exit.
    """
    raised_at_once: tuple[type[Exception], ...] = (Interrupted, *passed_on)
    for last in (False, True):
        try:
            return call()
        except raised_at_once:
            raise
        except SystemExit as leaving:
            raise RewardError(
                f"Reward {name} called sys.exit({leaving.code!r}), which would end the run without a message. Let it "
                "raise an exception where it cannot score: its rows are then invalid."
            ) from leaving
        except Exception as error:  # a reward may raise anything; the rows are invalid, never zero
            if last or isinstance(error, OutOfTime):
                trace = visible(traceback.format_exc())
                print(f"Reward {name} raised; its {count} rows are invalid:\n{trace}", file=sys.stderr)
                return None
            reason = visible(f"{type(error).__name__}: {error}")
            print(f"Reward {name} raised {reason}. It is called once more.", file=sys.stderr)
            time.sleep(RETRY_SECONDS)
            check_stop()
    return None
