"""Checkpoints of older versions: arrays that they lack, and versions after which a run is no longer bit-equal."""

import re
from typing import Any, NamedTuple

import jax.numpy as jnp

from pbrl_jax.config.older import FIRST_VERSION, number
from pbrl_jax.core.version import __version__


class Added(NamedTuple):
    """Arrays that checkpoints have since `version`.

    `paths` is a regular expression that whole leaf paths match (`batch/weight_B`). An older checkpoint is restored with
    `value` in their place: None where the record's field may be None, or a number that fills the array.
    """

    version: str
    paths: str
    value: float | None


#: One line for each optional field that TrainState, TrainBatch or another saved record gains.
ADDED: tuple[Added, ...] = (
    Added("0.2.0", r"(.*/)?empty", 0),
    Added("0.2.0", "batch/old_logp_BR", None),
)


class Changed(NamedTuple):
    """What `version` computes otherwise than those before, in a few words; `stages`: in supervised stages too."""

    version: str
    what: str
    stages: bool = False


#: One line for each change after which a run is no longer bit-equal.
NUMERICS: tuple[Changed, ...] = (
    Changed("0.2.0", "compares new log-probs with the trainer's old ones, not with the sampler's"),
    Changed("0.2.0", "adds gradients of supervised stages in float32 and divides them once by the count", stages=True),
    Changed("0.2.0", "computes a new encoder in encoder.dtype, and trains encoders in float32", stages=True),
    Changed("0.2.0", "gives equal responses to a prompt one score, where models round"),
    Changed("0.2.0", "leaves norms and biases out of Muon's weight decay", stages=True),
    Changed("0.2.0", "does not train on the first token of a text that has no prompt", stages=True),
    Changed("0.2.0", "judges a group's signal by every function, where functions are scaled apart"),
    Changed("0.2.0", "takes a KL in the reward from the trainer's log-probs, where there are such"),
    Changed("0.2.0", "moves an adaptive KL weight by at most 20 % an update, and not while a critic is trained alone"),
    Changed("0.2.0", "aligns and translates Urdu, Ethiopic, Armenian, Burmese, Khmer and Tibetan sentence by sentence"),
)


#: Fingerprints of a run that checkpoints before them do not have.
LATER_FINGERPRINTS = ("calibration",)


def with_later_fingerprints(saved: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """A checkpoint's fingerprints, with the run's own where the checkpoint is too old to have them."""
    return {name: now[name] for name in LATER_FINGERPRINTS if name in now} | saved


def written_by(record: dict[str, Any]) -> str:
    """The version that wrote a meta.json."""
    return record.get("version", FIRST_VERSION)


def fill_in(saved: dict[str, Any], version: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Path -> value of the wanted leaves that a checkpoint does not have because it is too old to.

    Args:
      saved: path -> anything, of the checkpoint's arrays.
      version: that wrote it.
      wanted: path -> jax.ShapeDtypeStruct or array, of the expected tree.
    """
    values: dict[str, Any] = {}
    for name, leaf in wanted.items():
        added = next((one for one in ADDED if re.fullmatch(one.paths, name)), None)
        if name in saved or added is None or number(version) >= number(added.version):
            continue
        values[name] = None
        if added.value is not None:
            values[name] = jnp.full(leaf.shape, added.value, leaf.dtype, device=getattr(leaf, "sharding", None))
    return values


def describe(version: str, filled: dict[str, Any], meta: dict[str, Any]) -> str:
    """One line about what an older version's checkpoint means for this one; empty where it means nothing.

    Args:
      filled: from `fill_in`.
      meta: the checkpoint's; changes of reinforcement learning mean nothing to a supervised stage.
    """
    missing = sorted(name for name, value in filled.items() if value is None)
    told = [f"without {', '.join(missing)}, made anew"] if missing else []
    told += [
        f"{change.version} {change.what}"
        for change in NUMERICS
        if number(version) < number(change.version) <= number(__version__) and (change.stages or "cursor" in meta)
    ]
    if not told:
        return ""
    return f"The checkpoint is of pbrl_jax {version}: {'; '.join(told)}. What follows is not bit-equal to that version."
