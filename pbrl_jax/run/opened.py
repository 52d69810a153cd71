"""What a verb reads of a configuration, opened without weights: data, references, tokenizers, the configs of models,
reward functions, servers and the work directory."""

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh

from pbrl_jax.config.fields import settings_of
from pbrl_jax.config.tree import Config, with_values
from pbrl_jax.core.errors import PbrlError, installed
from pbrl_jax.core.lock import refuse_model
from pbrl_jax.core.paths import WorkDir, as_path, numbered_json_lines
from pbrl_jax.core.records import Prompt
from pbrl_jax.data.batches import prompt_sampler
from pbrl_jax.data.load import fit_prompts, load_prompts
from pbrl_jax.data.responses import holds_preferences, read_examples, read_preferences
from pbrl_jax.eval.audit import file_cases
from pbrl_jax.eval.calibrate import different_pairs, pairs_from_file, pairs_from_prompts
from pbrl_jax.logs.trackers import SERVICES, projects_of
from pbrl_jax.mesh.sharding import MESH_AXES, mesh_shape
from pbrl_jax.models.specs import DECODERS
from pbrl_jax.pivots.store import open_store
from pbrl_jax.pivots.write import attach_references, check_questions
from pbrl_jax.rewards.combine import reads_references, reward_names
from pbrl_jax.rewards.similarity import SimilarityConfig, read_calibration
from pbrl_jax.rewards.translation import TranslatorConfig
from pbrl_jax.rewards.user import load_function
from pbrl_jax.rollout.endpoint import Endpoint
from pbrl_jax.run import named_models
from pbrl_jax.run.assemble import (
    asks_for_evaluation,
    check_positions,
    evaluation_prompts,
    refuse_other_experiment,
    training_prompts,
)
from pbrl_jax.run.audit import check_replies, replied_prompts, trained_encoder
from pbrl_jax.run.dpo import refuse_other_tokens, stored_pairs
from pbrl_jax.run.encoder import all_pairs
from pbrl_jax.run.first_prompts import first_prompts
from pbrl_jax.run.named_models import Elsewhere
from pbrl_jax.run.scored import read_groups
from pbrl_jax.run.sft import reference_pool, supervised
from pbrl_jax.run.translator import parallel_text, split_pairs
from pbrl_jax.text.prompts import form_of
from pbrl_jax.text.tokenizers import Tokenizer
from pbrl_jax.train.fused import check_fusable
from pbrl_jax.train.start import check_layout


class Opened(NamedTuple):
    """A setting, what was found there, and what is wrong with it."""

    setting: str
    found: str
    problem: str = ""


class Opening(NamedTuple):
    """A configuration that is opened for a verb, and what was found so far.

    `options` are those of the verb beside the configuration (`replies`, `pairs`); `tokenizers` are by `policy` and
    `encoder`.
    """

    verb: str
    config: Config
    work: WorkDir
    options: Mapping[str, Any]
    prompts: list[Prompt]
    tokenizers: dict[str, Tokenizer]
    devices: int


def opened(
    config: Config, verb: str, work: WorkDir, options: Mapping[str, Any] | None = None, devices: int | None = None
) -> list[Opened]:
    """Everything that `pbrl VERB` reads, in turn; a problem with one does not hide that of another. `devices`: of the
    host that runs it; None: this one's."""
    opening = Opening(verb, config, work, options or {}, [], {}, jax.device_count() if devices is None else devices)
    return [found for setting in named(opening) if (found := _look(setting, opening)) is not None]


def named(opening: Opening) -> Iterator[str]:
    """The settings that a verb reads, those first whose content others need."""
    verb, config = opening.verb, opening.config
    new = config.policy.source == "random"
    own_words = new and not config.policy.tokenizer
    policy = "policy.preset" if own_words else "policy.tokenizer" if new else "policy.source"
    pivot = "pivot.file" if config.pivot.source == "file" else "pivot.source"
    match verb:
        case "sft" if config.sft.source != "samples":
            yield from ["data"] * (own_words or config.sft.source != "file")
            yield from {"translated": (pivot, "sft.translator", policy), "file": (policy, "sft.path")}.get(
                config.sft.source, (policy, "sft.source")
            )
        case "dpo" if _preferred(config):
            yield from [*["data"] * own_words, policy, "dpo.path"]
        case "encoder":
            yield from ["data", policy, "encoder.source", "contrastive.batch_size"]
        case "pivots":
            yield from ["data", pivot, policy, "encoder.source"]
        case "translator":
            yield from ["translator.path", "translator.source"]
        case "calibrate":
            yield from ["--pairs" if opening.options.get("pairs") else "data", "encoder.source"]
        case "audit":
            yield from ["data", "--replies", policy, "encoder.source", *REWARDS]
        case _:
            yield from ["--workdir", "data", *["eval.source"] * (verb == "train"), pivot]
            yield from [policy, "encoder.source", *REWARDS, f"{verb}.path", "train.fused", "rollout.engine"]
            yield from ["rollout.max_prompt_length", "train.prompts_per_step"]
    yield from ["lora.quantization"] * (verb in ("train", "sft", "dpo"))
    yield from [f"log.{name}" for name in SERVICES] * (verb == "train")


def data(opening: Opening) -> str:
    config = opening.config
    if opening.verb == "calibrate":
        found = load_prompts(config.data, config.train.seed, require=("question_en",))
        return counted_pairs(different_pairs(pairs_from_prompts(found, opening.options.get("limit", 0))))
    opening.prompts.extend(training_prompts(config))
    return counted(opening.prompts)


def evaluation(opening: Opening) -> str | None:
    if not asks_for_evaluation(opening.config):
        return None
    return counted(evaluation_prompts(opening.config, opening.prompts))


def references(opening: Opening) -> str | None:
    """Those of the data or of a file; an expert's are found, or written, when the run starts."""
    config = opening.config
    if config.pivot.source in ("policy", "endpoint"):
        check_questions(opening.prompts)
    if config.pivot.source == "endpoint":
        return endpoint(opening)
    if config.pivot.source == "file":
        if not config.pivot.file:
            raise Elsewhere("no file is named yet; give --pivot.file")
        if not as_path(config.pivot.file).exists():
            raise Elsewhere(f"there is no file {config.pivot.file!r} yet, which the expert's responses are read from")
    if config.pivot.source == "policy" or not opening.prompts:
        return None
    rewarded = opening.verb != "pivots" and (opening.verb != "sft" or config.sft.source == "samples")
    if config.pivot.source == "dataset" and rewarded and not reads_references(config.reward):
        return "not read by the rewards of this run"
    kept, report = attach_references(opening.prompts, config, open_store(config.pivot, opening.work.root))
    opening.prompts[:] = kept
    return report.describe()


def endpoint(opening: Opening) -> str:
    Endpoint(opening.config.endpoint)
    return named_models.server(opening.config.endpoint.url)


def policy(opening: Opening) -> str | None:
    settings, found = opening.config.policy, None
    if settings.source == "random":
        pieces = opening.devices  # of a vocabulary that is not trained yet: any number that divides
        if settings.tokenizer:
            opening.tokenizers["policy"] = named_models.tokenizer(settings.tokenizer)
            pieces = opening.tokenizers["policy"].vocab_size
            found = f"{pieces} pieces"
        spec = dataclasses.replace(DECODERS[settings.preset], vocab_size=pieces)
    else:
        found, described = named_models.policy(settings.source)
        opening.tokenizers["policy"], spec = described.tokenizer, described.spec
        if opening.verb != "audit":
            check_positions(opening.config, described)
    if opening.verb in ("train", "sft", "dpo"):
        shape = mesh_shape(opening.config.mesh, opening.devices)
        check_layout(spec, opening.config, AbstractMesh(shape, MESH_AXES))
    return found


def encoder(opening: Opening) -> str | None:
    settings = opening.config.encoder
    if settings.source != "random":
        found, opening.tokenizers["encoder"] = named_models.encoder(settings.source, settings.pooling)
        return found
    return trained_encoder(opening.work) if opening.verb in ("audit", "calibrate") else None


def lengths(opening: Opening) -> str | None:
    tokenizer, config = opening.tokenizers.get("policy"), opening.config
    if tokenizer is None or not opening.prompts:
        return None
    limit, form = config.rollout.max_prompt_length, form_of(config.data)
    kept, ids = fit_prompts(opening.prompts, tokenizer, limit, config.data.overlong_prompts, **form)
    fit = f"{len(kept)} of {len(opening.prompts)} prompts fit, the longest of them has {max(map(len, ids))} tokens"
    opening.prompts[:] = kept
    return "\n".join([fit, *first_prompts(kept, ids, tokenizer, form)])


def batches(opening: Opening) -> None:
    if opening.prompts:
        prompt_sampler(opening.config, opening.prompts)


def contrastive_batches(opening: Opening) -> None:
    if opening.prompts:
        all_pairs(with_values(opening.config, contrastive={"steps": 1}), opening.prompts)


def reward_functions(opening: Opening) -> str | None:
    own = [name for name in reward_names(opening.config.reward) if ":" in name]
    for name in own:
        load_function(name)
    return ", ".join(own) or None


def reward_translator(opening: Opening) -> str | None:
    source = settings_of(opening.config.reward, TranslatorConfig).translator
    if source == "endpoint":
        return endpoint(opening)
    return None if source in ("", "policy") else named_models.translator(source)


def reward_comet(opening: Opening) -> str | None:
    settings = settings_of(opening.config.reward, TranslatorConfig)
    return "; ".join(map(named_models.comet, filter(None, (settings.comet, *settings.comet_more)))) or None


def calibration(opening: Opening) -> str | None:
    settings = settings_of(opening.config.reward, SimilarityConfig)
    if settings.similarity != "calibrated":
        return None
    return f"measured with {read_calibration(settings.calibration, opening.config.data.languages)[0]}"


def fused(opening: Opening) -> str | None:
    policy, encoder = (opening.tokenizers.get(kind) for kind in ("policy", "encoder"))
    if not opening.config.train.fused or (encoder is not None and policy is None):
        return None
    check_fusable(opening.config, encoder is None or encoder.fingerprint == (policy and policy.fingerprint))
    return "the reward is computed on the devices"


def work_directory(opening: Opening) -> None:
    refuse_model(opening.work.root)
    refuse_other_experiment(opening.config, opening.work)


def sampler(opening: Opening) -> str | None:
    rollout = opening.config.rollout
    return named_models.server(rollout.vllm_address) if rollout.engine == "vllm" else None


def sft_rows(opening: Opening) -> str | None:
    config, rows = opening.config, None
    if config.sft.source == "samples":
        return f"{len(read_groups(config.sft.path))} groups of scored responses" if config.sft.path else None
    if config.sft.source == "file":
        rows = read_examples(config.sft.path, config.data.split, config.data.languages)
    elif config.data.source == "quickstart":
        return None
    tokenizer = opening.tokenizers.get("policy")
    if tokenizer is None:
        return f"{len(rows or reference_pool(config)[0]['english'])} rows"
    pools = supervised(config, tokenizer, rows).pools
    return ", ".join(f"{len(pool)} rows ({name})" for name, pool in pools.items())


def preferences(opening: Opening) -> str | None:
    config, path = opening.config, opening.config.dpo.path
    tokenizer = opening.tokenizers.get("policy")
    if not path:
        return None
    if not holds_preferences(path, config.data.split):
        groups = read_groups(path)
        if tokenizer is not None:
            refuse_other_tokens(groups, tokenizer, path)
        return f"{len(groups)} groups of scored responses"
    rows = read_preferences(path, config.data.split, config.data.languages)
    fit = "" if tokenizer is None else f", of which {len(stored_pairs(rows, config, tokenizer))} fit"
    return f"{len(rows)} pairs of preference{fit}"


def calibration_pairs(opening: Opening) -> str:
    path, limit = opening.options["pairs"], opening.options.get("limit", 0)
    return counted_pairs(different_pairs(pairs_from_file(path, opening.config.data.languages, limit)))


def training_pairs(opening: Opening) -> str:
    config = opening.config
    return counted_pairs(split_pairs(parallel_text(config), config.translator.held_out, config.train.seed)[0])


def counted_pairs(pairs: Mapping[str, Sequence]) -> str:
    """`sw 64, zh 64 pairs`."""
    return ", ".join(f"{code} {len(found)}" for code, found in pairs.items()) + " pairs"


def translator_source(opening: Opening) -> str | None:
    source = opening.config.translator.source
    return None if source == "random" else named_models.translator(source)


def replies(opening: Opening) -> str | None:
    path = opening.options.get("replies", "")
    check_replies(opening.config, path)
    if path and opening.config.pivot.source == "dataset":
        file_cases(path, replied_prompts(opening.config, opening.work, path), opening.options.get("limit", 0))
    return f"{len(numbered_json_lines(path))} rows" if path else None


def needing(package: str, asked: Callable[[Config], Any]) -> Callable[[Opening], None]:
    """A look for a package that a setting needs and the package alone does not bring."""

    def look(opening: Opening) -> None:
        if asked(opening.config) and not installed(package):
            raise Elsewhere(f"{package} is not installed here")

    return look


def _project(service: str, config: Config) -> str:
    return projects_of(config.log)[service]


#: What a reward reads.
REWARDS = ("reward.functions", "reward.translator", "reward.comet", "reward.calibration")
#: Setting -> what is found there; None where there is nothing to open.
LOOKS: dict[str, Callable[[Opening], str | None]] = {
    "data": data, "eval.source": evaluation, "pivot.source": references, "pivot.file": references,
    "policy.source": policy, "policy.tokenizer": policy, "policy.preset": policy,
    "encoder.source": encoder, "rollout.engine": sampler,
    "rollout.max_prompt_length": lengths, "train.prompts_per_step": batches,
    "contrastive.batch_size": contrastive_batches,
    "reward.functions": reward_functions, "reward.translator": reward_translator, "reward.comet": reward_comet,
    "reward.calibration": calibration, "train.fused": fused, "--workdir": work_directory, "sft.source": sft_rows,
    "sft.path": sft_rows, "dpo.path": preferences, "translator.path": training_pairs,
    "sft.translator": lambda opening: named_models.translator(opening.config.sft.translator),
    "translator.source": translator_source, "--pairs": calibration_pairs, "--replies": replies,
    "lora.quantization": needing("qwix", lambda config: config.lora.quantization != "none"),
    **{f"log.{name}": needing(service.package, functools.partial(_project, name))
       for name, service in SERVICES.items()},
}  # fmt: skip


def _look(setting: str, opening: Opening) -> Opened | None:
    """What is found at a setting; None where there is nothing to open."""
    look = LOOKS.get(setting)
    try:
        found = None if look is None else look(opening)
    except Elsewhere as place:
        return Opened(setting, f"not opened: {place}")
    except Exception as error:  # the clients of stores raise their own kinds
        if where := _elsewhere(error):
            return Opened(setting, f"not opened: {where}")
        if not isinstance(error, PbrlError):
            raise
        return Opened(setting, "", str(error))
    return None if found is None else Opened(setting, found)


def _elsewhere(error: Exception) -> str:
    """Where that is what this shell, but not a run, lacks; empty: the error is one of a run, too."""
    if "PBRL_DATA" in str(error) and "PBRL_DATA" not in os.environ:
        return "PBRL_DATA is not set here"
    if isinstance(error.__cause__, ConnectionError):  # of a data set on the hub
        return str(error.__cause__).splitlines()[0]
    if not isinstance(error, PbrlError) and "gs://" in str(error):
        return f"its store cannot be reached now ({str(error).splitlines()[0]})"
    return ""


def _preferred(config: Config) -> bool:
    """Whether dpo.path holds pairs, or nothing that can be read now."""
    try:
        return bool(config.dpo.path) and holds_preferences(config.dpo.path, config.data.split)
    except Exception:  # `preferences` says why
        return True


def counted(prompts: list[Prompt]) -> str:
    """`96 prompts (en 32, sw 64)`."""
    counts = ", ".join(f"{code} {count}" for code, count in sorted(Counter(p.language for p in prompts).items()))
    return f"{len(prompts)} prompts ({counts})"
