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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pbrl_jax.checkpoint import list_checkpoints
from pbrl_jax.config.checks import unread_fields
from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import CheckpointError, ConfigError, DataError
from pbrl_jax.core.lock import held
from pbrl_jax.core.paths import WorkDir, read_json_lines, read_json_object, work_dir, write_json_lines
from pbrl_jax.data.sources.table import languages_of
from pbrl_jax.mesh.agree import is_first
from pbrl_jax.mesh.devices import devices_line
from pbrl_jax.mesh.hosts import join_hosts, refuse_several
from pbrl_jax.mesh.watch import watched_run
from pbrl_jax.rewards.user import INLINE
from pbrl_jax.run.config_file import load_config, merged
from pbrl_jax.run.settings import as_config, config_class
from pbrl_jax.train.signals import SIGNALS

Table = list[dict[str, Any]]
ROWS = {"rows": "data", "eval_rows": "eval"}
"""Arguments of `run_training` that are tables -> the section that reads them."""


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
    config: Config | str | os.PathLike | None = None,
    *,
    workdir: str | os.PathLike,
    rows: Iterable[Any] | None = None,
    eval_rows: Iterable[Any] | None = None,
    reward_functions: Callable | Sequence[Callable] = (),
    **sections: Any,
) -> TrainingRun:
    """Train, or go on where the work directory was left, as `pbrl train` does.

    Args:
      config: a Config, the file or name of one, or None for the defaults.
      workdir: folder of the run.
      rows: training prompts as columns by name (question, language, answer, ...; docs/guide_one_gpu.md): a list of
        dicts, a split of `datasets`, or a DataFrame of pandas. They are kept in the work directory. Their languages are
        trained in unless data.languages says otherwise; rows that name none are in the config's language, if it has
        one, else in English.
      eval_rows: problems to evaluate on, with answers.
      reward_functions: a function `f(prompts, completions, **columns) -> list of float or None`, or several; without
        reward.functions among the sections they are the only rewards, with it they come behind these.
      sections: settings, as `train={"max_steps": 10}, data={"languages": ["sw"]}`.

    Returns:
      The run; `finished` is False where it was asked to stop (SIGINT) and saved. Only in the main thread do signals
      ask for that.

    Raises:
      PbrlError: whatever is wrong with the settings, the data, the models or the work directory.
    """
    work = work_dir(workdir)
    start = _start(config)
    for name, values in sections.items():
        if not isinstance(values, Mapping):
            raise ConfigError(f"run_training: {name} is {values!r}; expected a section, as train={{'max_steps': 10}}.")
    settings = {name: dict(values) for name, values in sections.items()}
    given = {"rows": rows, "eval_rows": eval_rows}
    tables = {name: _table(name, table) for name, table in given.items() if table is not None}
    whole = _whole(work, start, settings, tables, reward_functions)
    with own_signal_handlers():
        run_verb("train", whole, str(work.root), functools.partial(_write_tables, work, tables))
    return read_training(work)


def _start(config: Any) -> Config:
    """The Config that a call begins with."""
    if isinstance(config, str | os.PathLike):
        return load_config(str(config))
    if config is None or isinstance(config, Config):
        return config_class()() if config is None else as_config(config)
    raise ConfigError(
        f"run_training: config is a {type(config).__name__}; expected a Config or the file or name of one. Give "
        "settings by section, as train={'max_steps': 10}."
    )


def _whole(
    work: WorkDir, start: Config, settings: dict[str, Any], tables: Mapping[str, Table], reward_functions: Any
) -> Config:
    """The Config of a call of `run_training`, whose rows are going to be in the work directory."""
    for name, table in tables.items():
        own = settings.get(ROWS[name], {})
        columns = own.get("columns", getattr(start, ROWS[name]).columns)
        language = list(start.data.languages) if len(start.data.languages) == 1 else ["en"]
        found = {"path": str(work.root / f"{name}.jsonl"), "languages": languages_of(table, columns, name) or language}
        settings[ROWS[name]] = {"source": "table"} | found | own
    if reward_functions:
        reward = settings.setdefault("reward", {})
        names = list(reward.get("functions", ()))
        for function in [reward_functions] if callable(reward_functions) else reward_functions:
            names.append(importable_name(function, names))
        reward["functions"] = names
        reward.setdefault("reward_weights", [1.0] * len(reward["functions"]))
    whole = merged(start, settings, "run_training")
    for line in unread_fields(whole):
        print(f"Note: {line}", file=sys.stderr)
    return whole


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


def _table(name: str, rows: Any) -> Table:
    """The rows of a list, a generator, a split of `datasets` or a data frame as dicts of columns, with NumPy's numbers
    and arrays, which data frames hold, as numbers and lists.

    Raises:
      DataError: no rows, or a value that JSON cannot hold.
    """
    if hasattr(rows, "notna"):  # a DataFrame, whose missing cells are NaN
        rows = rows.astype(object).where(rows.notna(), None).to_dict("records")
    if isinstance(rows, Mapping):
        raise DataError(
            f"{name} is a {type(rows).__name__} of {', '.join(map(str, rows))}; expected a list of dicts, or one "
            "split of a data set."
        )
    table = list(rows)
    if not table or not all(isinstance(row, Mapping) for row in table):
        raise DataError(f"{name} holds {type(table[0]).__name__ if table else 'nothing'}; expected dicts of columns.")
    try:
        return json.loads(json.dumps([dict(row) for row in table], default=_of_numpy))
    except TypeError as error:
        raise DataError(f"{name}: {error}. Use text and numbers.") from error


def _of_numpy(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else json.JSONEncoder().default(value)


def _write_tables(work: WorkDir, tables: Mapping[str, Table]) -> None:
    """Write rows to the work directory; CheckpointError where a run was trained on others there, which stay."""
    for name, rows in tables.items():
        file = work.root / f"{name}.jsonl"
        if file.exists() and json.dumps(read_json_lines(file)) == json.dumps(rows):
            continue
        if name == "rows" and file.exists() and list_checkpoints(work.checkpoints):
            raise CheckpointError(
                f"{work.root} holds a run on other rows, which stay in {file}. Use another workdir, or go on with that "
                f"run: give these rows, or {work.config} as the config and no rows."
            )
        write_json_lines(file, rows)


@contextlib.contextmanager
def own_signal_handlers() -> Iterator[None]:
    """The caller's signal handlers come back when a run has ended; only the main thread has any."""
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
