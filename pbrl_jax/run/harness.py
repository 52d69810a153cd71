"""`pbrl harness --policy DIR --tasks NAMES --workdir W`: any task of lm-evaluation-harness on a policy."""

import difflib
import os

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pbrl_jax.config.tree import Config, LogConfig
from pbrl_jax.core.characters import visible
from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.core.paths import as_path, write_atomic, write_json_lines
from pbrl_jax.eval.harness import harness_model, import_harness, result_text, sample_lines
from pbrl_jax.mesh.sharding import inference_mesh
from pbrl_jax.run.assemble import use_compilation_cache
from pbrl_jax.run.options import HarnessOptions, names_in
from pbrl_jax.weights.policies import load_policy


def check_tasks(names: list[str], include: str):
    """The harness's task manager, once every name is known to it.

    Raises:
      ConfigError: no name, or one that the harness does not know; a folder that does not exist.
    """
    if include and not os.path.isdir(include):
        raise ConfigError(f"--include-path: there is no folder {include}.")
    import_harness()
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include or None)
    if not names:
        raise ConfigError("--tasks is empty; expected names with commas between, such as mgsm_native_cot_sw.")
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"The harness has no task {name!r}.{hint} `lm_eval ls tasks` lists them all; task files of your own: "
                "--include-path DIR."
            )
    return manager


def main(options: HarnessOptions) -> None:
    """Run the tasks; leave W/harness.json and W/harness_samples.jsonl, and print the metrics.

    Raises:
      ConfigError: lm_eval is not installed, or an option that cannot be.
      DataError: a task's data cannot be loaded.
    """
    names = names_in(options.tasks)
    manager = check_tasks(names, options.include_path)
    use_compilation_cache(Config(log=LogConfig(compilation_cache=options.compilation_cache)))
    mesh = inference_mesh(options.fsdp, options.tensor)
    policy = load_policy(options.policy, mesh, options.dtype)
    model = harness_model(
        policy, batch_size=options.batch_size, max_length=options.max_length, max_gen_toks=options.max_gen_toks,
        seed=options.seed, mesh=mesh,
    )  # fmt: skip
    try:
        found = import_harness().simple_evaluate(
            model=model, tasks=names, task_manager=manager, limit=options.limit or None, num_fewshot=options.shots,
            apply_chat_template=options.apply_chat_template, random_seed=options.seed, torch_random_seed=None,
        )  # fmt: skip
    except (ConnectionError, OSError, ValueError) as error:
        raise DataError(
            f"The harness stops: {error}. Where the hub cannot be reached, copy the task's YAML, put `dataset_path: "
            "json` with `dataset_kwargs: {data_files: {test: FILE.jsonl}}` in it, and give --include-path."
        ) from error
    samples = found.pop("samples", {})
    root = as_path(options.workdir)
    write_atomic(root / "harness.json", result_text(found))
    write_json_lines(root / "harness_samples.jsonl", sample_lines(samples))
    show(found["results"])
    print(f"Numbers: {root / 'harness.json'}; responses: {root / 'harness_samples.jsonl'}")


def show(results: dict) -> None:
    """Task, metric, value and standard error on the terminal."""
    table = Table(title="lm-evaluation-harness")
    for name in ("task", "metric", "value", "standard error"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right", no_wrap=True)
    for task, metrics in results.items():
        for name, value in metrics.items():
            if isinstance(value, float) and "_stderr" not in name:
                metric, _, filtered = name.partition(",")
                error = metrics.get(f"{metric}_stderr,{filtered}")
                shown = f"{error:.4f}" if isinstance(error, float) else ""
                table.add_row(Text(visible(task)), Text(visible(name)), f"{value:.4f}", shown)
    Console().print(table)
