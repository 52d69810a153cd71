"""RoPE and its scaling in a `config.json`, in the old and the new format.

A scaling that does not depend on the length of a text is a divisor of each frequency and a factor of cosines and sines;
the formulas are those of transformers (tests compare with fixtures that it wrote). Two scalings depend on the length:
`dynamic` is plain RoPE up to max_position_embeddings, `longrope` uses `short_factor` up to the original length. Longer
texts are refused (see `positions_of`), since cached keys cannot change with the length.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.models.specs import DecoderSpec, Llama3Scaling
from pbrl_jax.weights.hf_fields import OFF, ConfigFields

ORIGINAL = "original_max_position_embeddings"

#: Supported RoPE type -> its required fields.
ROPE_TYPES = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
    "yarn": ("factor", ORIGINAL),
    "longrope": (ORIGINAL,),
}
#: RoPE type -> its optional fields.
OPTIONAL = {
    "dynamic": (ORIGINAL,),
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
             "llama_4_scaling_beta", "max_position_embeddings"),
    "longrope": ("attention_factor", "factor", "short_factor", "long_factor"),
}  # fmt: skip


class Rope(NamedTuple):
    """RoPE of global or local layers; the fields are those of DecoderSpec behind `rope_`."""

    theta: float
    factor: float = 1.0
    scaling: Llama3Scaling | None = None
    divisors: tuple[float, ...] = ()
    magnitude: float = 1.0


def yarn(theta: float, dim: int, values: Mapping[str, Any], where: str) -> Rope:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): frequencies with more than beta_fast turns within the original length
    are unchanged, those with less than beta_slow turns are divided by the factor, and others are interpolated."""
    factor, original = values["factor"], values[ORIGINAL]

    def plane(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = plane(values.get("beta_fast") or 32), plane(values.get("beta_slow") or 1)
    if values.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    divided = np.clip((np.arange(dim // 2) - low) / max(high - low, 1e-3), 0, 1)
    divisors = 1 / (divided / factor + 1 - divided)

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    magnitude = values.get("attention_factor")
    if magnitude is None:
        top, bottom = values.get("mscale"), values.get("mscale_all_dim")
        magnitude = scale(top) / scale(bottom) if top and bottom else scale(1.0)
    return Rope(theta, divisors=tuple(map(float, divisors)), magnitude=float(magnitude))


def longrope(theta: float, dim: int, values: Mapping[str, Any], context: Any, where: str) -> Rope:
    """LongRoPE (Ding et al. 2024, arXiv 2402.13753) within the original length: a divisor of each frequency."""
    short, original = values.get("short_factor"), values[ORIGINAL]
    if (
        not isinstance(short, list)
        or len(short) != dim // 2
        or not all(type(x) in (int, float) and x > 0 for x in short)
    ):
        raise CheckpointError(f"{where}: short_factor is {short!r}; expected {dim // 2} positive numbers.")
    magnitude, factor = values.get("attention_factor"), values.get("factor") or (context or original) / original
    if magnitude is None:
        magnitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return Rope(theta, divisors=tuple(map(float, short)), magnitude=float(magnitude))


def parse_rope(
    values: Mapping[str, Any] | None, theta: float, dim: int, where: str, config: Mapping[str, Any]
) -> tuple[Rope, float]:
    """(RoPE, the share of a head's channels that is rotated) from a dictionary in the old or the new format.

    Args:
      theta: the base, if the dictionary has none.
      dim: channels of a head.
      config: the full config, which has the lengths.
    """
    values = dict(values or {})
    kind = values.pop("rope_type", None) or values.get("type") or "default"
    values.pop("type", None)
    if kind == "su" or (kind == "yarn" and config.get("model_type") == "phi3"):
        kind = "longrope"  # names of early Phi-3
    if kind not in ROPE_TYPES:
        raise CheckpointError(f"{where}: rope_type is {kind!r}; supported are {', '.join(ROPE_TYPES)}.")
    length = config.get(ORIGINAL) or config.get("max_position_embeddings")
    if kind in ("yarn", "longrope") and length:
        values.setdefault(ORIGINAL, length)
    fields = ConfigFields(values, {}, where)
    theta = fields.number("rope_theta", theta)
    share = fields.number("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    numbers = {name: fields.number(name) for name in ROPE_TYPES[kind]}
    optional = {name: fields.take(name, None) for name in OPTIONAL.get(kind, ())}
    unknown = sorted(name for name in set(values) - fields.taken if values[name] not in OFF)
    if unknown:
        raise CheckpointError(f"{where}: {unknown[0]}={values[unknown[0]]!r} is not a field of rope_type {kind!r}.")
    settings = numbers | {name: value for name, value in optional.items() if value is not None}
    dim = int(dim * share)
    if kind == "llama3":
        original = int(numbers.pop(ORIGINAL))
        return Rope(theta, scaling=Llama3Scaling(original_max_position=original, **numbers)), share
    if kind == "yarn":
        return yarn(theta, dim, settings, where), share
    if kind == "longrope":
        return longrope(theta, dim, settings, config.get("max_position_embeddings"), where), share
    return Rope(theta, numbers["factor"] if kind == "linear" else 1.0), share


def read_rope(fields: ConfigFields, by_layer: bool, dim: int) -> tuple[Rope, Rope, int]:
    """(RoPE of global layers, RoPE of local layers, number of rotated channels or 0 for all) of a config.

    Old format: `rope_theta`, `rope_scaling`, and `rope_local_base_freq` for local layers. New format:
    `rope_parameters`, flat or with one dictionary per type of layer.

    Args:
      fields: the config.
      by_layer: local layers have a separate RoPE, which is never scaled.
      dim: channels of a head.
    """
    theta = fields.number("rope_theta", 10_000.0)
    local_theta = fields.number("rope_local_base_freq", theta) if by_layer else theta
    for name in ("partial_rotary_factor", ORIGINAL):
        fields.take(name, None)
    scaling, parameters = (
        fields.checked(name, None, lambda x: isinstance(x, Mapping | None), "an object")
        for name in ("rope_scaling", "rope_parameters")
    )

    def parse(values, theta: float, name: str) -> tuple[Rope, float]:
        return parse_rope(values, theta, dim, f"{fields.where}, {name}", fields.values)

    rope, share = parse(scaling, theta, "rope_scaling")
    local = Rope(local_theta) if by_layer else rope
    if parameters:
        old = rope
        if by_layer:
            rope, local = _rope_by_layer(parameters, theta, local_theta, parse, f"{fields.where}, rope_parameters")
        else:
            rope, share = parse(parameters, theta, "rope_parameters")
            local = rope
        if scaling and old != rope:
            raise CheckpointError(
                f"{fields.where}: rope_scaling {scaling!r} and rope_parameters {parameters!r} differ. "
                "Remove the one that is wrong."
            )
    rotated = int(dim * share)
    if rotated % 2 or not 0 < rotated <= dim:
        raise CheckpointError(
            f"{fields.where}: partial_rotary_factor {share} of {dim} channels is {rotated}, not even."
        )
    return rope, local, 0 if rotated == dim else rotated


def _rope_by_layer(parameters: Mapping[str, Any], theta: float, local_theta: float, parse, place) -> tuple[Rope, Rope]:
    """RoPE of global and of local layers from `rope_parameters` with one dictionary per type of layer."""
    unknown = sorted(set(parameters) - {"full_attention", "sliding_attention"})
    if unknown:
        raise CheckpointError(
            f"{place}: {unknown[0]}={parameters[unknown[0]]!r}; supported are full_attention and sliding_attention."
        )
    rope, _ = parse(parameters.get("full_attention"), theta, "rope_parameters, full_attention")
    local, _ = parse(parameters.get("sliding_attention"), local_theta, "rope_parameters, sliding_attention")
    if local not in (rope, Rope(local.theta)):
        raise CheckpointError(
            f"{place}, sliding_attention: {parameters['sliding_attention']!r}; supported is rope_type 'default'."
        )
    return rope, local


def kept_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The scaling of a config, in the old format, if an export cannot derive its type from the spec; else {}."""
    parameters = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or parameters.get("full_attention") or parameters
    kind = scaling.get("rope_type") or scaling.get("type")
    if kind in (None, "default", "linear", "llama3"):
        return {}
    original = {ORIGINAL: config[ORIGINAL]} if config.get(ORIGINAL) else {}
    return {"rope_scaling": {"rope_type": kind, **{k: v for k, v in scaling.items() if k != "type"}}, **original}


def phi3_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of LongRoPE as transformers 4 takes them for Phi-3 and 4: three in `rope_scaling`, of which one is
    `type`, and the original length outside. {} where `config` has another scaling, or an attention_factor."""
    scaling = config["rope_scaling"] or {}
    if "short_factor" not in scaling or scaling.get("attention_factor") is not None:
        return {}
    factors = {name: scaling[name] for name in ("short_factor", "long_factor") if name in scaling}
    original = scaling.get(ORIGINAL) or config.get(ORIGINAL)
    return {"rope_scaling": {"type": "longrope", **factors}, **({ORIGINAL: original} if original else {})}


def positions_of(kept: Mapping[str, Any], linear: float) -> int:
    """Longest text that the model supports, in tokens, from `kept_fields` and the linear RoPE factor; 0: unknown."""
    context, scaling = kept.get("max_position_embeddings") or 0, kept.get("rope_scaling") or {}
    kind, original = scaling.get("rope_type"), scaling.get(ORIGINAL) or kept.get(ORIGINAL) or context
    if kind in ("longrope", "su") or scaling.get("llama_4_scaling_beta"):
        return int(original)
    if kind == "yarn":
        return int(max(context, original * scaling.get("factor", 1)))
    return int(context * linear)


def rope_fields(spec: DecoderSpec) -> dict[str, Any]:
    """RoPE in the old format, which all versions of transformers and vLLM read. Divisors of frequencies are written as
    `longrope`, unless `kept_rope` of the original config replaces them."""
    scaling: dict[str, Any] | None = None
    if spec.rope_factor != 1.0:
        scaling = {"rope_type": "linear", "factor": spec.rope_factor}
    if spec.rope_scaling is not None:
        scaling = {"rope_type": "llama3", **dataclasses.asdict(spec.rope_scaling)}
        scaling[ORIGINAL] = scaling.pop("original_max_position")
    if spec.rope_divisors:
        factors = list(spec.rope_divisors)
        scaling = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors,
                   "attention_factor": spec.rope_magnitude, ORIGINAL: 32_768}  # fmt: skip
    partial = {"partial_rotary_factor": spec.rotary_dim / spec.head_dim} if spec.rotary_dim else {}
    return {"rope_theta": spec.rope_theta, "rope_scaling": scaling, **partial}
