"""COMET in Flax: a score of a translation, from an XLM-R encoder whose layers are mixed (Rei et al. 2020).

Four kinds. `regression` compares translation, source and reference, each encoded alone; `referenceless` leaves the
reference out (arXiv 2009.09025). `unified` reads them as one sequence (CometKiwi, arXiv 2209.06243), and `xcomet` also
tags error spans and mixes their MQM penalty into its score (arXiv 2310.10482). All equations are those of
unbabel-comet 2.2, deviations from the papers included, because the released weights were trained with them.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.core.errors import lookup
from pbrl_jax.models.encoder import TextEncoder, init_encoder
from pbrl_jax.models.layers import Projection, apply
from pbrl_jax.models.pooling import ACTIVATIONS, pool
from pbrl_jax.models.precision import widened
from pbrl_jax.models.specs import EncoderSpec

#: Inputs of a unified model where there is a reference; their scores are averaged.
UNIFIED_INPUTS = (("mt", "src"), ("mt", "ref"), ("mt", "src", "ref"))
#: Share of each of these inputs in the tags' probabilities.
TAG_WEIGHTS = (0.1667, 0.3333, 0.5)
#: Share of each input's score and of the MQM score in XCOMET's.
SCORE_WEIGHTS = (0.12, 0.33, 0.33, 0.22)
#: MQM penalty of a span by its tag: none, minor, major, critical; scores end at WORST points.
PENALTIES = (0.0, 1.0, 5.0, 10.0)
WORST = 25.0


@dataclass(frozen=True)
class CometSpec:
    """A COMET model; every field is read by the forward pass."""

    encoder: EncoderSpec
    #: regression, referenceless, unified or xcomet.
    kind: str
    #: Widths of the estimator's hidden layers.
    hidden: tuple[int, ...]
    #: How layer weights are normalised: sparsemax or softmax.
    transform: str = "sparsemax"
    #: Layers are normalised, over all tokens and channels of a sentence together, before they are mixed.
    layer_norm: bool = False
    #: Of regression and referenceless models; the others take the first token.
    pooling: str = "mean"
    activation: str = "tanh"
    final_activation: str = "identity"
    #: What a unified model was trained to read.
    segments: tuple[str, ...] = ("mt", "src", "ref")
    #: Labels of an error tagger; 0: none.
    tags: int = 0
    #: Hidden state that the tagger reads; 0 is the embeddings.
    word_layer: int = 0

    @property
    def features(self) -> int:
        """Width of the estimator's input."""
        return {"regression": 6, "referenceless": 4}.get(self.kind, 1) * self.encoder.width


def sparsemax(z: Float[Array, "N"]) -> Float[Array, "N"]:
    """Euclidean projection on the simplex (Martins and Astudillo 2016, arXiv 1602.02068)."""
    ordered = jnp.sort(z)[::-1]
    count = jnp.arange(1, z.size + 1)
    total = jnp.cumsum(ordered)
    support = (1 + count * ordered > total).sum()
    return jnp.maximum(z - (total[support - 1] - 1) / support, 0.0)


TRANSFORMS = {"sparsemax": sparsemax, "softmax": jax.nn.softmax}


def mix_layers(
    states_NBSD: Float[Array, "N B S D"],
    mask_BS: Bool[Array, "B S"],
    weights_N: Float[Array, "N"],
    gamma: Float[Array, ""],
    *,
    transform: str,
    layer_norm: bool,
) -> Float[Array, "B S D"]:
    """gamma * sum over layers of their share times their states."""
    shares = lookup(TRANSFORMS, transform, "layer transformation")(weights_N).astype(states_NBSD.dtype)
    if layer_norm:
        real = mask_BS[None, :, :, None].astype(states_NBSD.dtype)
        size = mask_BS.sum(axis=1)[None, :, None, None] * states_NBSD.shape[-1]
        mean = (states_NBSD * real).sum(axis=(2, 3), keepdims=True) / size
        spread = jnp.square((states_NBSD - mean) * real).sum(axis=(2, 3), keepdims=True) / size
        states_NBSD = (states_NBSD - mean) / jnp.sqrt(spread + 1e-12)
    return gamma.astype(states_NBSD.dtype) * jnp.einsum("n,nbsd->bsd", shares, states_NBSD)


def pair_features(kind: str, src_BD, mt_BD, ref_BD=None) -> Float[Array, "B F"]:
    """The estimator's input of a regression (src, mt, ref) or referenceless (src, mt) model."""
    with_src = [mt_BD * src_BD, jnp.abs(mt_BD - src_BD)]
    if kind == "referenceless":
        return jnp.concatenate([mt_BD, src_BD, *with_src], axis=-1)
    return jnp.concatenate([mt_BD, ref_BD, mt_BD * ref_BD, jnp.abs(mt_BD - ref_BD), *with_src], axis=-1)


def estimate(params, features_BF: Float[Array, "B F"], spec: CometSpec) -> Float[Array, "B"]:
    """The feed-forward network that gives one number per row."""
    x = features_BF
    for index, width in enumerate((*spec.hidden, 1)):
        x = apply(Projection((width,), use_bias=True), params[f"{index}"], x)
        name = spec.activation if index < len(spec.hidden) else spec.final_activation
        x = lookup(ACTIVATIONS, name, "activation")(x)
    return x[:, 0]


def mixed_states(params, tokens_BS, mask_BS, spec: CometSpec) -> tuple[jax.Array, jax.Array]:
    """(all states [N + 1, B, S, D], their mix [B, S, D])."""
    states = widened(apply(TextEncoder(spec.encoder), params["encoder"], tokens_BS, mask_BS, all_states=True))
    weights, gamma = params["layer_weights"][:, 0], params["gamma"][0]
    mixed = mix_layers(states, mask_BS, weights, gamma, transform=spec.transform, layer_norm=spec.layer_norm)
    return states, mixed


def score_apart(
    params, tokens_CBS: Int[Array, "C B S"], mask_CBS: Bool[Array, "C B S"], *, spec: CometSpec
) -> Float[Array, "B"]:
    """Scores of a regression or referenceless model.

    Args:
      tokens_CBS: source, translation and (regression) reference, each between its own special tokens.
      mask_CBS: their real tokens, special ones included: both count in the mean.
    """
    C, B, S = tokens_CBS.shape
    mask = mask_CBS.reshape(C * B, S)
    _, mixed = mixed_states(params, tokens_CBS.reshape(C * B, S), mask, spec)
    vectors = pool(spec.pooling, mixed, mask).reshape(C, B, -1)
    return estimate(params["estimator"], pair_features(spec.kind, *vectors), spec)


def score_joint(
    params, tokens_CBS: Int[Array, "C B S"], mask_CBS: Bool[Array, "C B S"], mt_B: Int[Array, "B"], *, spec: CometSpec
) -> Float[Array, "B"]:
    """Scores of a unified or XCOMET model.

    Args:
      tokens_CBS: one joint sequence (C = 1), or those of UNIFIED_INPUTS (C = 3); each begins with the translation.
      mask_CBS: their real tokens.
      mt_B: tokens of the translation with its special ones, at the start of every sequence.
    """
    C, B, S = tokens_CBS.shape
    states, mixed = mixed_states(params, tokens_CBS.reshape(C * B, S), mask_CBS.reshape(C * B, S), spec)
    score_CB = estimate(params["estimator"], mixed[:, 0], spec).reshape(C, B)
    if spec.kind == "unified":
        return score_CB.mean(axis=0)
    logits_XST = apply(Projection((spec.tags,), use_bias=True), params["tagger"], states[spec.word_layer])
    logits = logits_XST.reshape(C, B, S, spec.tags)
    shares = jnp.array(TAG_WEIGHTS if C == 3 else (1.0,), logits.dtype)
    tag_BS = jnp.argmax(jnp.einsum("c,cbst->bst", shares, jax.nn.softmax(logits, axis=-1)), axis=-1)
    mqm_B = mqm_score(tag_BS, jnp.arange(S)[None] < mt_B[:, None])
    score_CB = jnp.minimum(score_CB, 1.0)
    if C == 1:
        return sum(SCORE_WEIGHTS[:3]) * score_CB[0] + SCORE_WEIGHTS[3] * mqm_B
    return jnp.array(SCORE_WEIGHTS[:3], score_CB.dtype) @ score_CB + SCORE_WEIGHTS[3] * mqm_B


def mqm_score(tag_BS: Int[Array, "B S"], valid_BS: Bool[Array, "B S"]) -> Float[Array, "B"]:
    """1 without error spans, 0 with WORST points of them or more.

    A span is a run of tags other than 0; its first tag is its severity. As in unbabel-comet, a span that no 0 follows
    within the valid tokens does not count.
    """
    tag = jnp.where(valid_BS, tag_BS, 0)
    before = jnp.pad(tag, ((0, 0), (1, 0)))[:, :-1]
    closing = ((tag == 0) & valid_BS)[:, ::-1]
    closed = jnp.cumsum(closing, axis=1)[:, ::-1] > 0
    points = jnp.array(PENALTIES)[tag] * ((before == 0) & closed)
    return (WORST - jnp.minimum(points.sum(axis=1), WORST)) / WORST


def init_comet(key: jax.Array, spec: CometSpec):
    """Random float32 parameters: {"encoder", "layer_weights", "gamma", "estimator", ("tagger")}."""
    estimator, width = {}, spec.features
    for index, following in enumerate((*spec.hidden, 1)):
        module = Projection((following,), use_bias=True)
        estimator[f"{index}"] = module.init(jax.random.fold_in(key, index), jnp.zeros((1, width)))["params"]
        width = following
    params = {
        "encoder": init_encoder(jax.random.fold_in(key, 100), spec.encoder),
        "layer_weights": jnp.zeros((spec.encoder.layers + 1, 1)),
        "gamma": jnp.ones(1),
        "estimator": estimator,
    }
    if spec.tags:
        tagger = Projection((spec.tags,), use_bias=True)
        params["tagger"] = tagger.init(jax.random.fold_in(key, 101), jnp.zeros((1, spec.encoder.width)))["params"]
    return params
