"""Where COMET's parameters lie in a checkpoint of unbabel-comet."""

from pbrl_jax.models.comet import CometSpec
from pbrl_jax.weights.hf_encoder import encoder_names
from pbrl_jax.weights.hf_names import Stored

#: Tensors of a checkpoint that only training reads.
TRAINING_TENSORS = r"^(layerwise_attention\.dropout_(mask|fill)|(word|sent)loss\.weight)$"


def comet_names(spec: CometSpec) -> dict[str, Stored]:
    """Our parameter path -> tensor of an unbabel-comet checkpoint."""
    names = {f"encoder/{path}": stored for path, stored in encoder_names(spec.encoder).items()}
    states = spec.encoder.layers + 1
    names["layer_weights"] = Stored("layerwise_attention.scalar_parameters.{layer}", (1,), layers=states)
    names["gamma"] = Stored("layerwise_attention.gamma", (1,))
    width = spec.features
    for index, following in enumerate((*spec.hidden, 1)):
        # Linear, activation and dropout are three modules of one sequence.
        names[f"estimator/{index}/kernel"] = Stored(f"estimator.ff.{3 * index}.weight", (width, following), True)
        names[f"estimator/{index}/bias"] = Stored(f"estimator.ff.{3 * index}.bias", (following,))
        width = following
    if spec.tags:
        names["tagger/kernel"] = Stored("hidden2tag.weight", (spec.encoder.width, spec.tags), True)
        names["tagger/bias"] = Stored("hidden2tag.bias", (spec.tags,))
    return names
