"""The options of each verb as a dataclass: what its main reads, and what its parser and its help are made of."""

import dataclasses
import sys
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pbrl_jax.core.errors import ConfigError

CONFIG = "a shipped config's name, a Python file with get_config(), a YAML file, or a saved config.json"
GOES_ON = "folder of the run; an interrupted run goes on"
LARGEST = 2**31 - 1


def option(default: Any = dataclasses.MISSING, words: str = "", low: float | None = None, high: float = LARGEST,
           **more: Any) -> Any:  # fmt: skip
    """A field that is `--name`, required without a default, with its help and the bounds of a number; `place="IN"` for
    an argument that is known by its place, `repeated=True` for one that may be given several times."""
    return dataclasses.field(default=default, metadata={"words": words, "low": low, "high": high, **more})


@typing.dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(option,))
class Options:
    """What a verb takes; its subclasses are frozen dataclasses, which raise ConfigError for a number out of bounds."""

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        kind: Any = type(self)
        for field in dataclasses.fields(kind):
            value, low, high = getattr(self, field.name), field.metadata["low"], field.metadata["high"]
            if low is not None and value is not None and not low <= value <= high:
                limits = f"at most {high:g}" if high == LARGEST and value > low else bounds(low, high)
                raise ConfigError(f"{flag(field.name)} is {value}; expected {limits}.")


def flag(name: str) -> str:
    """`batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


def names_in(words: str) -> list[str]:
    """`sw, bn,` -> sw and bn."""
    return [name.strip() for name in words.split(",") if name.strip()]


def bounds(low: float, high: float) -> str:
    """The numbers from `low` to `high` in words."""
    if (low, high) == (0, 1):
        return "a share from 0 to 1"
    return f"at least {low:g}" if high == LARGEST else f"at least {low:g} and at most {high:g}"


def parse(kind: Any, arguments: Sequence[str], program: str, words: str,
          rest: bool = False) -> tuple[Any, list[str]]:  # fmt: skip
    """The options that were typed, of a class `kind` of Options; with `rest`, also the words that are none of them.

    Raises:
      ConfigError: a number out of its bounds.
      SystemExit: after --help, and where an option is unknown, missing or of another type.
    """
    import tyro
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec

    hints = typing.get_type_hints(kind)

    def spec(info: Any) -> StructConstructorSpec | None:
        fields = tuple(_parsed(field, hints) for field in dataclasses.fields(kind))
        return StructConstructorSpec(kind, fields) if info.type is kind else None

    registry = ConstructorRegistry()
    registry.struct_rule(spec)
    cli: Any = tyro.cli
    found = cli(
        kind, args=arguments, prog=program, description=words, registry=registry, return_unknown_args=rest,
        config=(tyro.conf.FlagCreatePairsOff,),
    )  # fmt: skip
    options, unknown = found if rest else (found, [])
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and getattr(options, field.name) == ():
            print(f"{program}: {field.metadata.get('place') or flag(field.name)} is required.", file=sys.stderr)
            raise SystemExit(2)
    return options, unknown


def _parsed(field: dataclasses.Field, hints: dict[str, Any]) -> Any:
    """How tyro reads a field, with its help, its bounds and its default."""
    import tyro
    from tyro.constructors import StructFieldSpec

    conf: Any = tyro.conf
    annotated: Any = Annotated
    told, hint, shown = field.metadata, hints[field.name], {}
    if type(None) in (kinds := typing.get_args(hint)) and kinds[0] in (int, float, str):
        shown["metavar"] = kinds[0].__name__.upper()
    if "place" in told:
        shown["metavar"] = told["place"]
        hint = conf.Positional[hint]
    if "repeated" in told:
        hint = conf.UseAppendAction[hint]
    if any(field.default is off for off in (None, False, "", ())):
        shown["help_behavior_hint"] = ""
    words = told["words"] if told["low"] is None else f"{told['words']} ({bounds(told['low'], told['high'])})"
    default = tyro.MISSING_NONPROP if field.default is dataclasses.MISSING else field.default
    return StructFieldSpec(field.name, annotated[hint, conf.arg(**shown)], default, words)


class ConfigOptions(Options):
    config: str = option(words=CONFIG, place="CONFIG")
    workdir: str = option(words=GOES_ON)
    dry_run: bool = option(False, "check and print the settings, open the data and models they name, load no weights")
    devices: int | None = option(None, "with --dry-run: check for a host with so many devices", 1)


class AuditOptions(ConfigOptions):
    min_auc: float | None = option(None, "fail below this share of pairs, for example 0.95", 0, 1)
    limit: int = option(192, "problems per language", 1)
    replies: str = option("", "JSON lines of faithful replies: id, language, response")


class CalibrateOptions(ConfigOptions):
    pairs: str = option("", "JSON lines: lang, src, en (.gz too); default: the questions of the data")
    limit: int = option(1000, "pairs per language; 0: all", 0)


class QuickstartOptions(Options):
    workdir: str = option(words=GOES_ON)
    seed: int = option(0, "of the data, the models and what is drawn")
    controls: bool = option(False, "also shuffled references, gold answers, and SFT")
    tiny: bool = option(False, "a check of all stages in a minute; it shows no effect")


class PlanOptions(Options):
    config: str = option(words=CONFIG, place="CONFIG")
    topology: str = option("", "v5p:2x2x4, v5litepod-16, h100:8, ...; default: this machine")
    json: str = option("", "also write the plan to this file")
    sweep: bool = option(False, "compare all machines (of the kind --topology), by hand")
    verb: Literal["train", "sft", "dpo", "encoder"] = option("train", "whose step")


class ConvertOptions(Options):
    source: str = option(words="folder in either form, work directory, COMET, hub id, or gs://", place="IN")
    target: str = option(words="another folder", place="OUT")
    dtype: str | None = option(None, "float32 or bfloat16; default: as IN is stored")
    to: str = option("hf", "hf (transformers, vLLM, ...), pbrl (our own), or adapter (PEFT)")
    pooling: Literal["mean", "cls", "last"] | None = option(None, "of an encoder whose folder does not say it")


class ReportOptions(Options):
    workdir: tuple[str, ...] = option(words="of train, quickstart, audit or eval; several are compared", place="W")
    out: str | None = option(None, "the file; default: report.html in W, comparison.html in the first of several")
    picture: str = option("", "also write the accuracies of W as a small PNG")


class PushOptions(Options):
    workdir: str = option(words="work directory of a finished training", place="W")
    repository: str = option(words="model on the hub; made where it does not exist", place="OWNER/NAME")
    private: bool = option(False, "a repository that is made is private")
    dry_run: bool = option(False, "write W/hub with its card, upload nothing")


class CompletionOptions(Options):
    shell: Literal["bash", "zsh"] = option(words="whose script is printed", place="SHELL")


class PolicyOptions(Options):
    policy: str = option(words="folder, work directory, hub id such as Qwen/Qwen3-0.6B, or gs://")
    dtype: str | None = option(None, "compute type, float32 or bfloat16; default: what the folder says")
    tensor: int = option(1, "devices that share each matrix product", 1)
    seed: int = option(0, "of what is drawn", 0)


class PromptOptions(PolicyOptions):
    """Of a verb that puts questions: the words around them, as in the settings data.*, and how answers are drawn."""

    system_prompt: str = option("", "your own system turn, in place of the style's words")
    user_prompt: str = option("", "your own user's turn, with {question} in it")
    prompt_file: str = option("", "both per language, YAML or JSON (docs/prompts.md)")
    thinking: Literal["default", "on", "off"] = option("default", "Qwen3's switch")
    temperature: float = option(0.0, "0 is greedy", 0.0, 100.0)


class MeshOptions(Options):
    fsdp: int = option(1, "devices that share the weights and take different rows", 1)
    compilation_cache: str = option("~/.cache/pbrl_jax/xla", "folder; empty is off")


class GenerateOptions(PromptOptions):
    prompt: tuple[str, ...] = option(words="a question; may be given several times", repeated=True)
    language: str = option("en", "language code of the questions")
    style: str = option("run", "run: as the run that trained it, else the question alone; or plain, base, "
                        "chat_question, chat, chat_boxed, chat_tags, auto")  # fmt: skip
    show_prompt: bool = option(False, "show the prompts as the policy reads them")
    stream: bool = option(False, "show the answer to one prompt as it is written")
    top_p: float = option(1.0, "nucleus mass; 1 is off", 1e-6, 1.0)
    top_k: int = option(0, "candidates kept; 0 is off", 0)
    max_completion_length: int = option(64, "tokens", 1, 2**20)


class EvalOptions(PromptOptions, MeshOptions):
    benchmark: str = option(words="mgsm, ..., or table with --data; an unknown name lists all")
    workdir: str = option(words="folder of this evaluation; an interrupted one goes on")
    languages: str = option("", "codes with commas between, sw,bn; default: all")
    limit: int = option(0, "problems of each language; 0: all", 0)
    shots: int | None = option(None, "worked examples before each problem; default: the benchmark's", 0)
    protocol: str | None = option(None, "native-cot, en-cot, direct, loglikelihood; default: the benchmark's first")
    style: str = option("benchmark", "benchmark: its own text; or a style the policy learnt")
    data: str = option("", "folder or hub id in place of the benchmark's (default: PBRL_DATA)")
    columns: tuple[str, ...] = option((), "of --benchmark table: question=prompt answer=label")
    samples: int = option(1, "responses to each problem, for pass@k and maj@k", 1)
    top_p: float = option(1.0, "nucleus mass; 1 is off", 0, 1)
    max_completion_length: int | None = option(None, "tokens; default: the protocol's", 1)
    batch_size: int = option(32, "problems at a time", 1)
    base: tuple[str, ...] = option((), "work directories of earlier evaluations to compare with")
    seen: str = option("", "languages of the training; default: the policy's config.json")
    training_data: str = option("", "training config whose text is looked for in the problems")
    ngram: int = option(13, "words in a row that count as an overlap", 1)
    max_overlap: float = option(1.0, "share of overlapping problems that is refused", 0, 1)


class HarnessOptions(PolicyOptions, MeshOptions):
    tasks: str = option(words="names with commas between; `lm_eval ls tasks` lists them")
    workdir: str = option(words="gets harness.json and harness_samples.jsonl")
    include_path: str = option("", "folder with task files of your own")
    limit: int = option(0, "documents of each task; 0: all", 0)
    shots: int | None = option(None, "worked examples; default: the task's", 0)
    batch_size: int = option(16, "requests at a time", 1)
    max_length: int = option(2048, "tokens of context and answer together", 1)
    max_gen_toks: int = option(256, "tokens of an answer where the task says nothing", 1)
    apply_chat_template: bool = option(False, "put the contexts as a user's turn")


class TranslateOptions(Options):
    source: str = option(words="rows with an English question; other columns are kept", place="IN.jsonl")
    target: str = option(words="accepted rows; rejected ones go to OUT.rejected.jsonl", place="OUT.jsonl")
    to: str = option(words="target languages, codes with commas between: sw,bn")
    translator: str = option(words="folder or hub id: NLLB, M2M100, a policy; or endpoint")
    column: str = option("question", "column of the English question")
    no_back_translation: bool = option(False, "half the work; names go unchecked")
    min_agreement: float = option(0.35, "least chrF of the way back", 0, 1)
    limit: int = option(0, "rows translated; 0: all", 0)
    batch_size: int = option(64, "rows between two writes", 1)
    endpoint_url: str = option("", "with endpoint: for example http://localhost:8000/v1")
    endpoint_model: str = option("", "with endpoint: its model's name")
    timeout: float = option(60.0, "with endpoint: seconds an answer may take", 0.001)
    max_requests: int = option(0, "with endpoint: the budget; 0: no limit", 0)
