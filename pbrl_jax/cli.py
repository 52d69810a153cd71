"""`pbrl <verb>`: parse, then call the verb's main in pbrl_jax.run.

Imports stay inside the verbs, so that `--help` and bad input answer at once.
"""

import argparse
import errno
import sys
import traceback
from collections.abc import Callable, Sequence

from pbrl_jax.core.characters import visible
from pbrl_jax.core.errors import ConfigError, PbrlError, did_you_mean, is_out_of_memory
from pbrl_jax.core.lock import held
from pbrl_jax.core.memory import check_memory_before_threads
from pbrl_jax.core.stopping import Interrupted
from pbrl_jax.core.version import __version__
from pbrl_jax.run.model_verbs import evaluation, generate, harness, translate

USAGE = """usage: pbrl VERB [arguments] [--debug] | pbrl --version

  quickstart --workdir W      the paper's effect in miniature, offline, on a CPU
  train CONFIG --workdir W    train or continue (--section.field VALUE overrides a setting)
  sft CONFIG --workdir W      a start policy by supervised fine-tuning
  dpo CONFIG --workdir W      learn from ranked pairs of the policy's own responses
  encoder CONFIG --workdir W  a multilingual encoder by contrastive training
  translator CONFIG --workdir W   a translation model (M2M100, NLLB) by training on parallel text
  plan CONFIG [--topology v5p:2x2x4]   does it fit, and how long is a step? Before a machine is rented
  pivots CONFIG --workdir W   write and embed the English references
  translate IN.jsonl OUT.jsonl --to sw,bn --translator MODEL   English prompts into other languages
  audit CONFIG --workdir W [--min-auc 0.95]   can this reward be cheated?
  calibrate CONFIG --workdir W [--pairs FILE]   what the encoder's cosines mean
  generate --policy DIR --prompt TEXT [--prompt TEXT ...]   try a policy
  convert IN OUT              a policy or encoder to or from the Hugging Face form, or to another type
  eval --policy DIR --benchmark NAME --workdir W   accuracy per language on a benchmark
  harness --policy DIR --tasks NAMES --workdir W   any task of lm-evaluation-harness
  report W [W2 ...]           one HTML page of a run, or of several beside each other
  push W OWNER/NAME           a finished run's policy onto the hub, with a model card
  completion bash             a script that completes verbs and options: source <(pbrl completion bash)

pbrl VERB --help says more; CONFIG is a file such as configs/tiny_cpu.py, or a shipped one by name (quickstart).
"""


CONFIG_HELP = "a shipped config's name, a Python file with get_config(), a YAML file, or a saved config.json"


def config_verb(name: str, description: str, **options: dict) -> Callable[[Sequence[str]], None]:
    """A verb of the form `pbrl NAME CONFIG --workdir W [--dry-run] [--section.field VALUE]`.

    `options` are further flags of the verb, name -> settings of add_argument; its main receives their values.
    """

    def run(arguments: Sequence[str]) -> None:
        parser = argparse.ArgumentParser(
            prog=f"pbrl {name}", description=description, add_help=False, allow_abbrev=False
        )
        parser.add_argument("config", help=CONFIG_HELP)
        parser.add_argument("--workdir", required=True, help="folder of the run; an interrupted run goes on")
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="check and print the settings, open the data and models they name, load no weights",
        )
        parser.add_argument("--devices", type=int, help="with --dry-run: check for a host with so many devices")
        for option, settings in options.items():
            parser.add_argument("--" + option.replace("_", "-"), **settings)
        if not arguments or arguments[0] in ("-h", "--help"):
            parser.print_help()
            print("\nSettings (--section.field VALUE): pbrl", name, "configs/tiny_cpu.py --help")
            return
        from pbrl_jax.config.checks import unread_fields
        from pbrl_jax.run.config_file import load_config, override

        if "-h" in arguments or "--help" in arguments:
            override(load_config(arguments[0]), ["--help"], f"pbrl {name} CONFIG --workdir W")
        known, rest = parser.parse_known_args(arguments)
        config = override(load_config(known.config), rest, f"pbrl {name} {known.config}")
        for line in unread_fields(config):
            print(f"Note: {line}", file=sys.stderr)
        if known.dry_run:
            from pbrl_jax.run.dry_run import main as dry_run

            dry_run(config, known.devices)
            return
        if known.devices is not None:
            raise ConfigError("--devices is only for --dry-run: a run takes all devices of its host. Leave it out.")
        from pbrl_jax.run.library import run_verb

        run_verb(name, config, known.workdir, **{option: getattr(known, option) for option in options})

    return run


def quickstart(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="pbrl quickstart", description="The paper's effect in miniature on a CPU.")
    parser.add_argument("--workdir", required=True, help="folder of the run; an interrupted run goes on")
    parser.add_argument("--controls", action="store_true", help="also shuffled references, gold answers, and SFT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a check of all stages in a minute; it shows no effect")
    known = parser.parse_args(arguments)
    from pbrl_jax.quickstart.main import main

    with held(known.workdir):
        main(known.workdir, known.seed, known.controls, known.tiny)


def convert(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="pbrl convert",
        description="Write a policy, an encoder or a translator in another form or type, or COMET as safetensors, "
        "and read it back.",
    )
    parser.add_argument("source", metavar="IN", help="folder in either form, work directory, COMET, hub id, or gs://")
    parser.add_argument("target", metavar="OUT", help="another folder")
    parser.add_argument("--dtype", help="float32 or bfloat16; default: as IN is stored")
    parser.add_argument("--to", default="hf", help="hf (transformers, vLLM, ...), pbrl (our own), or adapter (PEFT)")
    parser.add_argument("--pooling", choices=("mean", "cls", "last"), help="of an encoder whose folder does not say it")
    known = parser.parse_args(arguments[1:] if len(arguments) > 2 and arguments[0] == "comet" else arguments)
    from pbrl_jax.run.convert import main

    main(known.source, known.target, known.dtype, known.to, known.pooling)


def plan(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="pbrl plan", allow_abbrev=False,
        description="Memory and time of a step on a machine that need not be here (docs/scaling.md).",
    )  # fmt: skip
    parser.add_argument("config", help=CONFIG_HELP)
    parser.add_argument("--topology", default="", help="v5p:2x2x4, v5litepod-16, h100:8, ...; default: this machine")
    parser.add_argument("--json", default="", help="also write the plan to this file")
    parser.add_argument("--verb", default="train", choices=("train", "sft", "dpo", "encoder"), help="whose step")
    parser.add_argument("--sweep", action="store_true", help="compare all machines (of the kind --topology), by hand")
    known, rest = parser.parse_known_args(arguments)
    import os

    if known.topology:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs: the accelerators here stay free
    from pbrl_jax.run.config_file import load_config, override
    from pbrl_jax.run.plan import main

    config = override(load_config(known.config), rest, f"pbrl plan {known.config}")
    main(config, known.topology, known.json, known.sweep, known.verb)


def report(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="pbrl report", description="Write one self-contained HTML page of what runs left in their folders."
    )
    parser.add_argument("workdir", nargs="+", help="of train, quickstart, audit or eval; several are compared")
    parser.add_argument("--out", help="the file; default: report.html in W, comparison.html in the first of several")
    parser.add_argument("--picture", default="", help="also write the accuracies of W as a small PNG")
    known = parser.parse_args(arguments)
    from pbrl_jax.report.write import read_run, report_workdirs, write_picture

    print(report_workdirs(known.workdir, known.out))
    if known.picture:
        print(write_picture(known.picture, read_run(known.workdir[0])))


def push(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="pbrl push", description="Put a finished run's policy on the hub, with a model card."
    )
    parser.add_argument("workdir", metavar="W", help="work directory of a finished training")
    parser.add_argument("repository", metavar="OWNER/NAME", help="model on the hub; made where it does not exist")
    parser.add_argument("--private", action="store_true", help="a repository that is made is private")
    parser.add_argument("--dry-run", action="store_true", help="write W/hub with its card, upload nothing")
    known = parser.parse_args(arguments)
    from pbrl_jax.run.push import main

    main(known.workdir, known.repository, known.private, known.dry_run)


def completion(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="pbrl completion", description="A script for the shell: source <(pbrl completion bash)"
    )
    parser.add_argument("shell", choices=("bash", "zsh"))
    known = parser.parse_args(arguments)
    from pbrl_jax.run.completion import main

    main(known.shell, VERBS)


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "quickstart": quickstart,
    "train": config_verb("train", "Train a policy, or continue where the work directory was left."),
    "sft": config_verb("sft", "Train a start policy on references."),
    "dpo": config_verb("dpo", "Learn from pairs of the policy's own responses, ranked by the semantic reward."),
    "encoder": config_verb("encoder", "Train a multilingual encoder on parallel text."),
    "translator": config_verb("translator", "Train a translation model (M2M100, NLLB) on parallel text."),
    "plan": plan,
    "pivots": config_verb("pivots", "Write, filter and embed the English references."),
    "audit": config_verb(
        "audit",
        "Can this reward be cheated? Attacks on faithful replies, per language.",
        min_auc={"type": float, "help": "fail below this share of pairs, for example 0.95"},
        limit={"type": int, "default": 192, "help": "problems per language"},
        replies={"default": "", "help": "JSON lines of faithful replies: id, language, response"},
    ),
    "calibrate": config_verb(
        "calibrate",
        "Measure what the encoder's cosines mean, on parallel text.",
        pairs={"default": "", "help": "JSON lines: lang, src, en (.gz too); default: the questions of the data"},
        limit={"type": int, "default": 1000, "help": "pairs per language; 0: all"},
    ),
    "translate": translate,
    "generate": generate,
    "convert": convert,
    "eval": evaluation,
    "harness": harness,
    "report": report,
    "push": push,
    "completion": completion,
}


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
    except PbrlError as error:
        if debug:
            traceback.print_exc()
        print(f"Error: {visible(str(error))}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a missing file, a folder that may not be written to
        if debug:
            traceback.print_exc()
        print(f"Error: {visible(disk_problem(error))}", file=sys.stderr)
        return 1
    except Interrupted:
        print("Stopped. What was finished is kept; the same command goes on from here.")
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
