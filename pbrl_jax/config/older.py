"""Compatibility with older versions: renamed fields, changed defaults, and identities that new fields must not change.
"""

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_LOGGER = logging.getLogger(__name__)

FIRST_VERSION = "0.1.0"
"""The version of files without a version."""


def _pivot_path(section: Mapping[str, Any]) -> str:
    return "file" if section.get("source") == "file" else "store"


#: Old name -> function from its section's values to the new name. In 0.1.0 pivot.path was the folder of the store or,
#: with source file, the file of references.
RENAMED: dict[str, Callable[[Mapping[str, Any]], str]] = {"pivot.path": _pivot_path}

#: Field -> (version that changed its default, old default, new default). The old default in an older file is replaced
#: by the new one, since it cannot be known whether the user chose it.
CHANGED_DEFAULTS = {"algo.importance_sampling_mode": ("0.2.0", "off", "auto")}

#: Section class -> its fields in version 0.1.0, in order; see `stable_values`.
FIRST_FIELDS = {
    "OptimConfig": "optimizer learning_rate schedule warmup_steps schedule_steps min_learning_rate_share weight_decay "
    "b1 b2 eps max_grad_norm",
    "ContrastiveConfig": "steps batch_size learning_rate temperature hard_negatives",
    "LoraConfig": "rank alpha targets quantization tile_size",
    "DpoConfig": "path steps batch_size learning_rate warmup_steps beta loss_type label_smoothing pairs min_margin "
    "prompts",
    "RewardConfig": "functions reward_weights answer_weight parts language_gate rejected_value gate_share gate_penalty "
    "gate_schedule_steps similarity similarity_floor calibration references hybrid_form hybrid_gate "
    "hybrid_answer hybrid_reasoning repetition_ngram repetition_penalty overlong_length overlong_cache "
    "translator translation_similarity comet comet_wiring implicit_form implicit_policy judge_opponents "
    "final_weights curriculum_start curriculum_steps curriculum_shape timeout",
    "RolloutConfig": "max_prompt_length max_completion_length temperature top_p top_k weights segment_length",
}


def current_names(section: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the values of a section under their current names, one sentence per renamed field).

    If a field is given under both names, the value of the old name is used.
    """
    renamed, notes = dict(values), []
    for name in values:
        if rename := RENAMED.get(f"{section}.{name}"):
            new = rename(values)
            renamed[new] = renamed.pop(name)
            notes.append(f"{section}.{name} is now {section}.{new}")
    return renamed, notes


def current_defaults(section: str, values: Mapping[str, Any], version: str) -> tuple[dict[str, Any], list[str]]:
    """(the values of a section with the defaults that changed after `version`, one sentence per changed value)."""
    updated, notes = dict(values), []
    for name, value in values.items():
        since, before, now = CHANGED_DEFAULTS.get(f"{section}.{name}", ("0", None, None))
        if before is not None and value == before and number(version) < number(since):
            updated[name] = now
            notes.append(f"{section}.{name}={before} is now {now}")
    return updated, notes


def number(version: str) -> tuple[int, ...]:
    """`0.10.1` as (0, 10, 1), to compare versions."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def takes_old_names(section: str) -> Callable[[type], type]:
    """Class decorator: the constructor of the section (and `dataclasses.replace`) also takes old names, with a warning.
    """

    def decorate(cls: Any) -> Any:
        construct = cls.__init__

        @functools.wraps(construct)
        def __init__(self, *arguments, **values):
            values, notes = current_names(section, values)
            for note in notes:
                _LOGGER.warning("%s; the old name still works.", note)
            construct(self, *arguments, **values)

        cls.__init__ = __init__
        return cls

    return decorate


def with_current_names(
    arguments: Sequence[str], values: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], list[str]]:
    """(command line arguments `--section.field value` with current names, one sentence per renamed field).

    Args:
      arguments: what the user typed.
      values: section -> values of the configuration that the arguments override.
    """
    typed = dict(_pairs(arguments))
    renamed, notes = [], []
    for word in arguments:
        name, equals, value = word.partition("=")
        old = name.removeprefix("--").replace("-", "_")
        if name.startswith("--") and old in RENAMED:
            section, _, _ = old.partition(".")
            given = {key.rpartition(".")[2]: item for key, item in typed.items() if key.startswith(f"{section}.")}
            new = f"{section}.{RENAMED[old]({**values.get(section, {}), **given})}"
            notes.append(f"--{old} is now --{new}")
            word = f"--{new}{equals}{value}"
        renamed.append(word)
    return renamed, notes


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of every `--name value` and `--name=value`."""
    for word, following in zip(arguments, [*arguments, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            yield name[2:].replace("-", "_"), value if equals else following


def stable_values(section: Any, kind: str) -> dict[str, Any]:
    """The fields of a section in version 0.1.0, in their order, then later identity fields with another than the
    default value.

    The saved identity of a stage's checkpoint or of scored responses is computed from these, so that it does not change
    when a section gets a new field.

    Args:
      kind: a name in FIRST_FIELDS, or of a section that 0.1.0 did not have; the section may be of a subclass.
    """
    first = FIRST_FIELDS.get(kind, "").split()
    fields = (field for field in dataclasses.fields(section) if field.metadata.get("kind") != "operational")
    later = [field for field in fields if field.name not in first]
    changed = [field.name for field in later if getattr(section, field.name) != field.default]
    return {name: getattr(section, name) for name in (*first, *changed)}


def stable_repr(section: Any, kind: str) -> str:
    """`stable_values` in the form of `repr(section)` in version 0.1.0."""
    values = stable_values(section, kind)
    return f"{kind}({', '.join(f'{name}={value!r}' for name, value in values.items())})"
