"""`pbrl VERB`: parse, then call the verb's main in pbrl_jax.run.

Imports stay inside the verbs, so that `--help` and bad input answer at once.
"""

import contextlib
import dataclasses
import errno
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pbrl_jax.core.characters import visible
from pbrl_jax.core.errors import ConfigError, PbrlError, did_you_mean, is_out_of_memory
from pbrl_jax.core.lock import held
from pbrl_jax.core.memory import check_memory_before_threads
from pbrl_jax.core.stopping import Interrupted
from pbrl_jax.core.version import __version__
from pbrl_jax.run import options as of


def imported(module: str) -> Any:
    """A verb's module. What the imports made stays, and no later garbage collection looks at it: that took a tenth of
    the time to a first step."""
    found = importlib.import_module(module)
    gc.freeze()
    return found


def on_config(verb: "Verb", options: Any, settings: Sequence[str]) -> None:
    """`pbrl VERB CONFIG --workdir W [--dry-run] [--section.field VALUE]`."""
    from pbrl_jax.config.checks import unread_fields, unread_sections

    config = verb.configured(options.config, settings)
    for line in [*unread_fields(config), *unread_sections(verb.name, settings)]:
        print(f"Note: {line}", file=sys.stderr)
    shared = {field.name for field in dataclasses.fields(of.ConfigOptions)}
    own = {name: value for name, value in vars(options).items() if name not in shared}
    if options.dry_run:
        from pbrl_jax.run.dry_run import main as dry_run

        dry_run(verb.name, config, options.workdir, options.devices, own)
        return
    if options.devices is not None:
        raise ConfigError("--devices is only for --dry-run: a run takes all devices of its host. Leave it out.")
    from pbrl_jax.run.library import run_verb

    imported(f"pbrl_jax.run.{verb.name}")
    run_verb(verb.name, config, options.workdir, **own)


def on_options(verb: "Verb", options: Any, _settings: Sequence[str]) -> None:
    """A verb whose main takes its options; where it has a work directory, one at a time there."""
    main = imported(f"pbrl_jax.run.{verb.name}").main
    with held(options.workdir) if hasattr(options, "workdir") else contextlib.nullcontext():
        main(options)


def on_values(verb: "Verb", options: Any, _settings: Sequence[str]) -> None:
    """A verb whose main takes the values of its options in their order."""
    importlib.import_module(f"pbrl_jax.run.{verb.name}").main(*vars(options).values())


def quickstart(_verb: "Verb", options: of.QuickstartOptions, _settings: Sequence[str]) -> None:
    main = imported("pbrl_jax.quickstart.main").main
    with held(options.workdir):
        main(options.workdir, options.seed, options.controls, options.tiny)


def plan(verb: "Verb", options: of.PlanOptions, settings: Sequence[str]) -> None:
    if options.topology:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs: the accelerators here stay free
    from pbrl_jax.run.plan import main

    config = verb.configured(options.config, settings)
    main(config, options.topology, options.json, options.sweep, options.verb)


def report(_verb: "Verb", options: of.ReportOptions, _settings: Sequence[str]) -> None:
    from pbrl_jax.report.write import read_run, report_workdirs, write_picture

    print(report_workdirs(options.workdir, options.out))
    if options.picture:
        print(write_picture(options.picture, read_run(options.workdir[0])))


def completion(_verb: "Verb", options: of.CompletionOptions, _settings: Sequence[str]) -> None:
    from pbrl_jax.run.completion import main

    main(options.shell, {name: verb.options for name, verb in VERBS.items()})


@dataclass(frozen=True)
class Verb:
    """`pbrl NAME USAGE`: what it does, its options, and the function that runs it."""

    name: str
    usage: str
    words: str
    options: type = of.ConfigOptions
    run: Callable[["Verb", Any, Sequence[str]], None] = on_config

    def __call__(self, arguments: Sequence[str]) -> None:
        takes_settings, words = self.run in (on_config, plan), self.words
        if takes_settings:
            words += f"\n\nSettings (--section.field VALUE): pbrl {self.name} configs/tiny_cpu.py --help"
            if {"-h", "--help"} & {*arguments} and not arguments[0].startswith("-"):
                self.configured(arguments[0], ["--help"])
        options, settings = of.parse(self.options, arguments, f"pbrl {self.name}", words, rest=takes_settings)
        self.run(self, options, settings)

    def configured(self, file: str, settings: Sequence[str]) -> Any:
        """The configuration of a file with the settings that were typed."""
        from pbrl_jax.run.config_file import load_config, override

        return override(load_config(file), settings, f"pbrl {self.name} {file} --workdir W")


class ConvertVerb(Verb):
    """`pbrl convert comet IN OUT`, as version 0.1.0 had it, is `pbrl convert IN OUT`."""

    def __call__(self, arguments: Sequence[str]) -> None:
        named = len(arguments) > 2 and arguments[0] == "comet"
        super().__call__(arguments[1:] if named else arguments)


ON_CONFIG = "CONFIG --workdir W"
VERBS: dict[str, Verb] = {verb.name: verb for verb in (
    Verb("quickstart", "--workdir W", "the paper's effect in miniature, offline, on a CPU", of.QuickstartOptions,
         quickstart),
    Verb("train", ON_CONFIG, "train or continue (--section.field VALUE overrides a setting)"),
    Verb("sft", ON_CONFIG, "a start policy by supervised fine-tuning"),
    Verb("dpo", ON_CONFIG, "learn from ranked pairs of the policy's own responses"),
    Verb("encoder", ON_CONFIG, "a multilingual encoder by contrastive training"),
    Verb("translator", ON_CONFIG, "a translation model (M2M100, NLLB) by training on parallel text"),
    Verb("plan", "CONFIG [--topology v5p:2x2x4]", "does it fit, and how long is a step? Before a machine is rented",
         of.PlanOptions, plan),
    Verb("pivots", ON_CONFIG, "write and embed the English references"),
    Verb("translate", "IN.jsonl OUT.jsonl --to sw,bn --translator MODEL", "English prompts into other languages",
         of.TranslateOptions, on_options),
    Verb("audit", f"{ON_CONFIG} [--min-auc 0.95]", "can this reward be cheated?", of.AuditOptions),
    Verb("calibrate", f"{ON_CONFIG} [--pairs FILE]", "what the encoder's cosines mean", of.CalibrateOptions),
    Verb("generate", "--policy DIR --prompt TEXT [--prompt TEXT ...]", "try a policy", of.GenerateOptions, on_options),
    ConvertVerb("convert", "IN OUT", "a policy or encoder to or from the Hugging Face form, or to another type",
                of.ConvertOptions, on_values),
    Verb("eval", "--policy DIR --benchmark NAME --workdir W", "accuracy per language on a benchmark", of.EvalOptions,
         on_options),
    Verb("harness", "--policy DIR --tasks NAMES --workdir W", "any task of lm-evaluation-harness", of.HarnessOptions,
         on_options),
    Verb("report", "W [W2 ...]", "one HTML page of a run, or of several beside each other", of.ReportOptions, report),
    Verb("push", "W OWNER/NAME", "a finished run's policy onto the hub, with a model card", of.PushOptions, on_values),
    Verb("completion", "bash", "a script that completes verbs and options: source <(pbrl completion bash)",
         of.CompletionOptions, completion),
)}  # fmt: skip
USAGE = "\n".join([
    "usage: pbrl VERB [arguments] [--debug] | pbrl --version\n",
    *(f"  {f'{verb.name} {verb.usage}':<28}  {verb.words}" for verb in VERBS.values()),
    "\npbrl VERB --help says more; CONFIG is a file such as configs/tiny_cpu.py, or the name of a shipped one.\n",
])  # fmt: skip


#: Verb -> what to try when it needs more memory than the device has.
MEMORY = {
    "train": "Lower --train.microbatch-prompts or --train.logprob-chunk, or use --policy.remat full.",
    "sft": "Lower --sft.microbatch-size or --train.logprob-chunk, or use --policy.remat full.",
    "dpo": "Lower --dpo.microbatch-size or --train.logprob-chunk, or use --policy.remat full.",
    "encoder": "Lower --contrastive.microbatch-size or --encoder.max-length.",
    "translator": "Lower --translator.microbatch-size.",
    "pivots": "Lower --eval.batch-size or --pivot.max-completion-length.",
    "generate": "Give fewer --prompt at a time or a lower --max-completion-length; --tensor N shares the model over N "
    "devices.",
    "convert": "Convert in the host's memory: JAX_PLATFORMS=cpu pbrl convert IN OUT.",
}


def disk_problem(error: OSError) -> str:
    """What the operating system refused, and what to do about it."""
    what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{what}. Free space on the disk and run the same command: it goes on from the last step that was saved."
    return f"{what}. Check the path, and that it can be read and written to."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; the exit status is 0, or 1 after one clear message on bad input."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if arguments[0] == "--version":
        print(f"pbrl_jax {__version__}")
        return 0
    if arguments[0] not in VERBS:
        print(f"Unknown verb {arguments[0]!r}. {did_you_mean(arguments[0], VERBS)}", file=sys.stderr)
        return 1
    check_memory_before_threads()
    try:
        VERBS[arguments[0]](arguments[1:])
    except (PbrlError, OSError) as error:  # OSError: a full disk, a missing file, a folder that may not be written to
        if debug:
            traceback.print_exc()
        message = str(error) if isinstance(error, PbrlError) else disk_problem(error)
        print(f"Error: {visible(message)}", file=sys.stderr)
        return 1
    except Interrupted as stopped:
        print(str(stopped) or "Stopped. What was finished is kept; the same command goes on from here.")
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from the last step that was saved.", file=sys.stderr)
        return 130
    except Exception as error:  # exhausted memory is the user's to solve; all else is ours and shows itself
        if debug or not is_out_of_memory(error):
            raise
        where = "this host" if isinstance(error, MemoryError) else "the device"
        print(f"Error: {where} ran out of memory. {MEMORY.get(arguments[0], MEMORY['train'])}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
