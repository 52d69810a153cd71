"""Runs as function calls: what the command line does, and `run_training` for scripts and notebooks."""

import contextlib
import functools
import importlib
import json
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pbrl_jax.checkpoint import list_checkpoints
from pbrl_jax.config.checks import unread_fields
from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import CheckpointError, ConfigError, DataError
from pbrl_jax.core.lock import held
from pbrl_jax.core.paths import WorkDir, read_json_lines, read_json_object, work_dir, write_json_lines
from pbrl_jax.mesh.agree import is_first
from pbrl_jax.mesh.devices import devices_line
from pbrl_jax.mesh.hosts import join_hosts, refuse_several
from pbrl_jax.mesh.watch import watched_run
from pbrl_jax.run.config_file import load_config, merged
from pbrl_jax.run.settings import as_config, config_class
from pbrl_jax.train.signals import SIGNALS

INLINE = "pbrl_inline_rewards"
"""Module, of this process alone, of reward functions that cannot be imported from elsewhere."""


class TrainingRun(NamedTuple):
    """What a training left: its folder (`pbrl report`, `load_policy(folder)`), the step it reached, whether that is the
    last one, the metrics of that step with those of the last evaluation, and those of every logged step."""

    folder: str
    step: int
    finished: bool
    metrics: dict[str, Any]
    history: list[dict[str, Any]]


def run_verb(name: str, config: Config, workdir: str, before: Callable[[], None] | None = None, **values: Any) -> None:
    """`pbrl NAME CONFIG --workdir W`: one at a time in a work directory, on all hosts of the run; `before()` is called
    first when the work directory is this command's alone."""
    hosts = join_hosts()
    said = devices_line()
    if is_first():
        print(said)
    if name != "train":
        refuse_several(name, hosts)
    lock = held(workdir) if is_first() else contextlib.nullcontext()
    with watched_run(hosts, config.log.slow_phase_seconds), lock:
        if before is not None:
            before()
        importlib.import_module(f"pbrl_jax.run.{name}").main(config, workdir, **values)


def run_training(
    config: Config | str | None = None,
    *,
    workdir: str | os.PathLike,
    rows: Sequence[Mapping[str, Any]] | None = None,
    eval_rows: Sequence[Mapping[str, Any]] | None = None,
    reward_functions: Sequence[Callable] = (),
    **sections: Mapping[str, Any],
) -> TrainingRun:
    """Train, or go on where the work directory was left, as `pbrl train` does.

    Args:
      config: a Config, the file or name of one, or None for the defaults.
      workdir: folder of the run.
      rows: training prompts as columns by name (question, language, answer, ...; docs/guide_one_gpu.md); they are kept
        in the work directory, and their languages are trained in unless data.languages says otherwise.
      eval_rows: problems to evaluate on, with answers.
      reward_functions: functions `f(prompts, completions, **columns) -> list of float or None`; without
        reward.functions among the sections they are the only rewards, with it they come behind these.
      sections: settings, as `train={"max_steps": 10}, data={"languages": ["sw"]}`.

    Returns:
      The run; `finished` is False where it was asked to stop (SIGINT) and saved.

    Raises:
      PbrlError: whatever is wrong with the settings, the data, the models or the work directory.
    """
    work = work_dir(workdir)
    start = load_config(config) if isinstance(config, str) else as_config(config) if config else config_class()()
    settings = {name: dict(values) for name, values in sections.items()}
    tables = {name: given for name, given in (("rows", rows), ("eval_rows", eval_rows)) if given is not None}
    if rows is not None:
        settings["data"] = _table(work, "rows", rows) | settings.get("data", {})
    if eval_rows is not None:
        found = _table(work, "eval_rows", eval_rows)
        settings["eval"] = {"source": "table", "path": found["path"], "languages": found["languages"]} | settings.get(
            "eval", {}
        )
    if reward_functions:
        reward = settings.setdefault("reward", {})
        names = list(reward.get("functions", ()))
        for function in reward_functions:
            names.append(importable_name(function, names))
        reward["functions"] = names
        reward.setdefault("reward_weights", [1.0] * len(reward["functions"]))
    whole = merged(start, settings, "run_training")
    for line in unread_fields(whole):
        print(f"Note: {line}", file=sys.stderr)
    with own_signal_handlers():
        run_verb("train", whole, str(work.root), functools.partial(_write_tables, work, tables))
    return read_training(work)


def read_training(work: WorkDir) -> TrainingRun:
    """The run of a work directory that a training has left."""
    history, final = read_json_lines(work.metrics), read_json_object(work.final)
    last = history[-1] if history else {}
    return TrainingRun(
        str(work.root), final.get("step", last.get("step", 0)), bool(final), last | final.get("metrics", {}), history
    )


def importable_name(function: Callable, taken: Sequence[str] = ()) -> str:
    """`package.module:function`, by which a run finds the function; one of a script, a notebook or another function is
    found in this process alone, under a name that is not among the `taken` ones.

    Raises:
      ConfigError: something that is no function with a name.
    """
    name, module = getattr(function, "__name__", ""), getattr(function, "__module__", "")
    if not callable(function) or not name:
        raise ConfigError(f"reward_functions holds {function!r}; expected functions with a name.")
    if module != "__main__" and getattr(sys.modules.get(module), name, None) is function:
        return f"{module}:{name}"
    if not name.isidentifier():
        raise ConfigError(f"reward_functions holds a {name}; define it with `def`, so that its values have a name.")
    while f"{INLINE}:{name}" in taken:
        name += "_2"
    setattr(sys.modules.setdefault(INLINE, types.ModuleType(INLINE)), name, function)
    return f"{INLINE}:{name}"


def _table(work: WorkDir, name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings of a table that is going to be in the work directory."""
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        raise DataError(f"{name} holds {type(rows[0]).__name__ if rows else 'nothing'}; expected dicts of columns.")
    languages = list(dict.fromkeys(str(row.get("language", "en")) for row in rows))
    return {"source": "table", "path": str(work.root / f"{name}.jsonl"), "languages": languages}


def _write_tables(work: WorkDir, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write rows to the work directory.

    Raises:
      DataError: a value that JSON cannot hold.
      CheckpointError: a run was trained on other rows there; they stay as they are.
    """
    for name, rows in tables.items():
        file = work.root / f"{name}.jsonl"
        try:
            given = json.dumps([dict(row) for row in rows])
        except TypeError as error:
            raise DataError(f"{name}: {error}. Use text and numbers.") from error
        if file.exists() and json.dumps(read_json_lines(file)) == given:
            continue
        if name == "rows" and file.exists() and list_checkpoints(work.checkpoints):
            raise CheckpointError(
                f"{work.root} holds a run on other rows, which stay in {file}. Use another workdir, or go on with that "
                f"run: give these rows, or {work.config} as the config and no rows."
            )
        write_json_lines(file, json.loads(given))


@contextlib.contextmanager
def own_signal_handlers() -> Iterator[None]:
    """The caller's signal handlers come back when a run has ended; outside of the main thread a run has none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
