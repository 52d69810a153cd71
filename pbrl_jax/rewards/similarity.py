"""From cosines to rewards: their scale, several references, and the value of two parts. Pure functions."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pbrl_jax.config.fields import identity, settings_of
from pbrl_jax.config.reward import RewardConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import as_path, parse_json


@dataclass(frozen=True)
class SimilarityConfig(RewardConfig):
    """Settings of rewards that are cosines."""

    similarity: Literal["raw", "affine", "floor", "calibrated"] = identity("raw")
    """Cosine to reward: raw, affine ((1 + cos) / 2), floor (see `similarity_floor`), or calibrated (baseline of
    mismatched pairs per language, see `calibration`)."""  # ASSUMED: not stated
    similarity_floor: float = identity(0.0, at_least=-1, at_most=0.99, only_with=("similarity", "floor"))
    """With similarity floor: the cosine with reward 0; above it the reward is (cos - floor) / (1 - floor)."""
    calibration: str = identity("", only_with=("similarity", "calibrated"))
    """With similarity calibrated: the calibration.json that `pbrl calibrate` wrote."""


@dataclass(frozen=True)
class PartsConfig(RewardConfig):
    """Settings of rewards that score reasoning and answer separately."""

    answer_weight: float = identity(0.5, at_least=0, at_most=1)
    """Alpha of the hybrid: alpha * answer part + (1 - alpha) * reasoning part."""  # ASSUMED: not stated
    hybrid_form: Literal["convex", "product", "gated"] = identity("convex")
    """How answer part a and reasoning part r are combined: convex (alpha * a + (1 - alpha) * r), product
    (a^alpha * r^(1 - alpha), parts clipped at 0), or gated (the convex sum where a >= hybrid_gate, else alpha * a)."""
    # ASSUMED: not stated
    hybrid_gate: float = identity(0.5, at_least=0, at_most=1, only_with=("hybrid_form", "gated"))
    """hybrid_form gated: the smallest answer part with which the reasoning part counts."""  # ASSUMED


def scale_similarity(
    cosine: Float[Array, "..."], config: SimilarityConfig, baseline: Float[Array, "..."] | None = None
) -> Float[Array, "..."]:
    """A cosine on the scale of `config.similarity`.

    raw: the cosine. affine: (1 + cos) / 2. calibrated: (cos - b) / (1 - b) clipped to [0, 1], where b is the mean
    cosine of mismatched pairs of the row's language; this undoes the compression of cross-lingual cosines. floor: the
    same with b = config.similarity_floor for every language, for example the cosine of a response with one wrong
    number.

    Args:
      cosine: any shape.
      baseline: b of calibrated; broadcasts against `cosine`.
    """
    if config.similarity == "affine":
        return (1 + cosine) / 2
    if config.similarity == "raw":
        return cosine
    zero = jnp.asarray(config.similarity_floor) if config.similarity == "floor" else baseline
    if zero is None:
        raise ConfigError("reward.similarity=calibrated needs the host path; use --train.no-fused.")
    return jnp.clip((cosine - zero) / jnp.maximum(1 - zero, 1e-3), 0.0, 1.0)


def reference_cosine(
    vector_BE: Float[Array, "B E"], pivot_BKE: Float[Array, "B K E"], has_BK: Bool[Array, "B K"], how: str
) -> Float[Array, "B"]:
    """The max or mean (`how`) cosine of each vector with its existing references, of up to K; 0 where none exists."""
    cosine_BK = jnp.einsum("be,bke->bk", vector_BE, pivot_BKE)
    if how == "mean":
        return jnp.where(has_BK, cosine_BK, 0.0).sum(axis=1) / jnp.maximum(has_BK.sum(axis=1), 1)
    best_B = jnp.where(has_BK, cosine_BK, -jnp.inf).max(axis=1)
    return jnp.where(has_BK.any(axis=1), best_B, 0.0)


def combine_parts(
    reasoning_B: Float[Array, "B"], answer_B: Float[Array, "B"], config: PartsConfig
) -> Float[Array, "B"]:
    """The value of two parts by `config.hybrid_form`, alpha = config.answer_weight.

    convex: alpha * a + (1 - alpha) * r (the simplest reading of the paper). product: a^alpha * r^(1 - alpha), parts
    clipped at 0, so that neither compensates for the other. gated: the convex sum where a >= config.hybrid_gate, else
    alpha * a, so that reasoning counts only with a good answer.
    """
    alpha = config.answer_weight
    if config.hybrid_form == "product":
        return jnp.maximum(answer_B, 0.0) ** alpha * jnp.maximum(reasoning_B, 0.0) ** (1 - alpha)
    value_B = alpha * answer_B + (1 - alpha) * reasoning_B
    if config.hybrid_form == "gated":
        return jnp.where(answer_B >= config.hybrid_gate, value_B, alpha * answer_B)
    return value_B


def load_baselines(config: SimilarityConfig, languages: Sequence[str], encoder_key: str) -> dict[str, float] | None:
    """Language -> mean cosine of mismatched pairs, from the file that `pbrl calibrate` wrote; None if the similarity is
    not calibrated.

    Raises:
      ConfigError: no path, no such file, another encoder's file, or a language that was not measured.
    """
    if config.similarity != "calibrated":
        return None
    measured, baselines = read_calibration(config.calibration, languages)
    if measured != encoder_key:
        raise ConfigError(
            f"reward.calibration {config.calibration!r} was measured with encoder {measured!r}, this run has "
            f"{encoder_key!r}. Run `pbrl calibrate` with this run's configuration."
        )
    return baselines


def read_calibration(path: str, languages: Sequence[str]) -> tuple[str, dict[str, float]]:
    """(key of the encoder, language -> mean cosine of mismatched pairs) of the file that `pbrl calibrate` wrote.

    Raises:
      ConfigError: no path, no such file, or a language that was not measured.
    """
    if not path:
        raise ConfigError(
            "reward.similarity=calibrated needs reward.calibration: run `pbrl calibrate CONFIG --workdir W` and give "
            "W/calibration.json."
        )
    try:
        stored = parse_json(as_path(path).read_text())
        baselines = {code: float(row["baseline"]) for code, row in stored["languages"].items()}
        measured = str(stored["encoder"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"reward.calibration {path!r} cannot be read ({type(error).__name__}: {error}). Write it with "
            "`pbrl calibrate CONFIG --workdir W`."
        ) from error
    missing = sorted(set(languages) - set(baselines))
    if missing:
        raise ConfigError(
            f"reward.calibration {path!r} lacks {', '.join(missing)}; it has {', '.join(sorted(baselines))}. Run `pbrl "
            "calibrate` with parallel text of these languages."
        )
    return measured, baselines


def calibration_fingerprint(config: RewardConfig, languages: Sequence[str]) -> dict[str, str]:
    """{"calibration": what identifies the measured means of these languages}; {} where rewards are not calibrated.
    Errors as `read_calibration`."""
    settings = settings_of(config, SimilarityConfig)
    if settings.similarity != "calibrated":
        return {}
    measured, baselines = read_calibration(settings.calibration, languages)
    text = repr((measured, {code: baselines[code] for code in sorted(languages)}))
    return {"calibration": hashlib.sha256(text.encode()).hexdigest()}
