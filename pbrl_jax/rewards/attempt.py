"""A reward function's call: one that raises is called once more, and then its rows are invalid."""

import sys
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

from pbrl_jax.core.characters import visible
from pbrl_jax.core.errors import RewardError
from pbrl_jax.core.stopping import Interrupted, check_stop

Found = TypeVar("Found")

RETRY_SECONDS = 0.2
"""Between a call that raised and its repetition."""


class OutOfTime(TimeoutError):
    """A call that took longer than reward.timeout; another one would, too."""


def attempted(
    name: str, call: Callable[[], Found], count: int, passed_on: tuple[type[Exception], ...] = ()
) -> Found | None:
    """What `call()` returns; None where it raised twice, which is printed.

    Args:
      name: of the reward.
      count: rows that are invalid then.
      passed_on: exceptions that are the caller's, beside a requested stop.

    Raises:
      RewardError: it called sys.exit, which is for programs and not for a function within one.
    """
    not_ours: tuple[type[Exception], ...] = (Interrupted, *passed_on)
    for last in (False, True):
        try:
            return call()
        except not_ours:
            raise
        except SystemExit as leaving:
            raise RewardError(
                f"Reward {name} called sys.exit({leaving.code!r}), which would end the run without a word. Let it "
                "raise an exception where it cannot score: its rows are then invalid."
            ) from leaving
        except Exception as error:  # a reward may raise anything; the rows are invalid, never zero
            if last or isinstance(error, OutOfTime):
                said = visible(traceback.format_exc())
                print(f"Reward {name} raised; its {count} rows are invalid:\n{said}", file=sys.stderr)
                return None
            said = visible(f"{type(error).__name__}: {error}")
            print(f"Reward {name} raised {said}. It is called once more.", file=sys.stderr)
            time.sleep(RETRY_SECONDS)
            check_stop()
    return None
