"""Progress names the stage and the time left, as a bar on a terminal and as lines when piped."""

import io

import pytest
from rich.console import Console

from pbrl_jax.logs.progress import Progress, duration


class Clock:
    """Seconds that only pass when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


@pytest.mark.parametrize(
    "seconds, text",
    [(-1, "0 s"), (7.6, "8 s"), (59.6, "1 min 00 s"), (209, "3 min 29 s"), (3600, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_time_left_ignores_the_first_step_which_compiles():
    clock = Clock()
    progress = Progress("train", 10, clock=clock, console=console(False))
    assert progress.seconds_left() is None
    clock.now += 60
    progress.advance()
    assert progress.seconds_left() is None
    clock.now += 2
    progress.advance()
    assert progress.seconds_left() == 16.0  # 8 steps at 2 s
    clock.now += 4
    progress.advance(2)
    assert progress.seconds_left() == 12.0  # 6 steps at 6 s for 3


def test_steps_of_an_earlier_run_do_not_count_for_the_pace():
    clock = Clock()
    progress = Progress("train", 100, done=50, clock=clock, console=console(False))
    progress.advance()
    clock.now += 3
    progress.advance()
    assert progress.seconds_left() == 48 * 3
    assert progress.describe() == "train: 52 of 100 steps (52 %), 2 min 24 s left"


def test_plain_lines_when_piped():
    clock, out = Clock(), console(False)
    with Progress("train", 4, part=(5, 7), console=out, every_seconds=5, clock=clock) as progress:
        for step in range(4):
            clock.now += 3
            progress.advance(note=f"reward 0.{step}")
    assert out.file.getvalue().splitlines() == [
        "[5/7] train: started, 4 steps to do",
        "[5/7] train: 2 of 4 steps (50 %), 6 s left, reward 0.1",
        "[5/7] train: 4 of 4 steps (100 %), 12 s so far, reward 0.3",
        "[5/7] train: done after 12 s",
    ]


def test_bar_on_a_terminal_shows_stage_and_time_left():
    clock, out = Clock(), console(True)
    with Progress("train", 4, console=out, clock=clock) as progress:
        progress.advance()
        clock.now += 30
        progress.advance(note="[odd] note")
        progress._bar.refresh()
    shown = out.file.getvalue()
    assert "train: 2 of 4 steps (50 %), 1 min 00 s left, [odd] note" in shown
    assert "\x1b[" in shown and "━" in shown
    assert "train: done after 30 s" in shown


def test_an_error_ends_the_stage_as_stopped():
    out = console(False)
    with pytest.raises(KeyError):
        with Progress("pivots", console=out, clock=Clock()):
            raise KeyError
    assert out.file.getvalue().splitlines() == ["pivots: started", "pivots: stopped after 0 s"]


def test_an_unknown_total_is_counted():
    out, clock = console(False), Clock()
    with Progress("read", unit="row", console=out, clock=clock, every_seconds=0) as progress:
        for _ in "abc":
            progress.advance()
    assert "read: 3 rows, 0 s so far" in out.file.getvalue()


def test_inactive_is_silent():
    out = console(False)
    with Progress("train", 2, active=False, console=out) as progress:
        progress.advance(2)
    assert out.file.getvalue() == ""
