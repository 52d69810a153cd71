"""Reading a `config.json` such that every field is read, known to be irrelevant, or refused."""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.output import warn_once
from pbrl_jax.core.paths import is_model_config, parse_json
from pbrl_jax.weights.tensors import CONFIG

#: Fields that no forward pass reads, but that an export copies.
KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "initializer_range")

#: Names of fields that no forward pass reads: private fields, ids, names, types, versions, hints for programs and
#: exports, settings of training and of output, and generation settings of older versions of transformers.
IGNORED = re.compile(
    r"_.*|.*_ids?|.*_?names?(_or_path)?|.*version|transformers[._]js.*|unsloth.*|.*dropout.*|.*layerdrop|.*_loss(_.*)?"
    r"|.*initializer.*|init_std|.*_pdrop|gradient_checkpointing|.*label.*|pooler_.*|summary_.*|directionality"
    r"|architectures|auto_map|(model|problem)_type|tokenizer_class|(torch_)?dtype|torchscript|use_(bfloat16|cache)"
    r"|(attn|cache)_implementation|chunk_size_feed_forward|pretraining_tp|unpad_inputs|use_memory_efficient_attention"
    r"|is_(encoder_)?decoder|tie_encoder_decoder|max_position_embeddings|matryoshka_dimensions|prefix"
    r"|finetuning_task|task_specific_params|output_(attentions|hidden_states|past|router_logits|scores)|.*return_dict.*"
    r"|temperature|top_[kp]|typical_p|num_beam.*|num_return_sequences|.*_penalty|do_sample|early_stopping|(min|max)_length"
    r"|max_new_tokens|.*suppress_tokens|.*no_repeat_ngram_size|.*invalid_values"
)
#: Values that switch a field off.
OFF: tuple[Any, ...] = (None, False, 0, "", [], {})
#: Parts of names of fields that may change what a model computes.
MUST_KNOW = re.compile(
    r"act|alibi|attention|attn|bias|bidirection|block|cap|chunk|clip|conv|cross|decoder|depth|dim|embed|expert|factor|ffn"
    r"|gate|group|head|hidden|intermediate|kv|latent|layer|length|lora|mask|mlp|moe|mrope|multiplier|mup|nope|norm|position|prefix"
    r"|qk|quant|ratio|residual|rope|rotary|router|scal|share|sink|size|skip|sparse|state|temperature|tie|top_?k|type|vision"
    r"|vocab|width|window"
)

MISSING = object()


def read_config(folder: str, source: str) -> dict[str, Any] | None:
    """`config.json` of a model; None if there is none, or if it is the config of a training run.

    Raises:
      CheckpointError: the file is not JSON.
    """
    path = os.path.join(folder, CONFIG)
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            config = parse_json(file.read())
    except ValueError as error:
        raise CheckpointError(f"{CONFIG} in {source!r} is not JSON: {error}. Download the file again.") from error
    return config if is_model_config(config) else None


def stored_compute_type(config: dict[str, Any]) -> str:
    """bfloat16 if the config names it, else float32 (float16 may overflow for models trained in another type)."""
    places = (config, config.get("text_config") or {})
    types = [str(place.get(name)) for place in places for name in ("dtype", "torch_dtype") if place.get(name)]
    return "bfloat16" if types and types[0].endswith("bfloat16") else "float32"


class ConfigFields:
    """The fields of one config. Each is read by a method, and `finish` refuses those that were not read.

    Args:
      values: the config.
      defaults: values of missing fields.
      where: name of the config in messages.
    """

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], where: str = "config.json"):
        self.values, self.defaults, self.where = values, defaults, where
        self.taken: set[str] = set()

    def take(self, name: str, default: Any = MISSING) -> Any:
        """The field's value, else the family's default, else `default`, else a CheckpointError."""
        self.taken.add(name)
        value = self.values.get(name, self.defaults.get(name, default))
        if value is MISSING:
            raise CheckpointError(f"{self.where} has no {name!r}. Add it as the model's authors published it.")
        return value

    def checked(self, name: str, default: Any, valid: Callable[[Any], bool], expected: str) -> Any:
        """A value for which `valid` holds; the message calls such values `expected`."""
        value = self.take(name, default)
        if not valid(value):
            raise CheckpointError(f"{self.where}: {name} is {value!r}; expected {expected}.")
        return value

    def size(self, name: str, default: Any = MISSING, least: int = 1) -> int:
        """An integer of at least `least`."""
        return self.checked(name, default, lambda x: type(x) is int and x >= least, f"an integer of at least {least}")

    def number(self, name: str, default: Any = MISSING) -> float:
        """A positive number."""
        return float(self.checked(name, default, lambda x: type(x) in (int, float) and x > 0, "a positive number"))

    def flag(self, name: str, default: Any = MISSING) -> bool:
        """True or false; null is false."""
        return bool(self.checked(name, default, lambda x: x in (True, False, None), "true or false"))

    def expect(self, name: str, *supported: Any) -> None:
        """Refuse a value that is not supported; a missing field has the first supported value."""
        value = self.take(name, supported[0])
        if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in supported):
            known = " or ".join(map(repr, supported))
            raise CheckpointError(f"{self.where}: {name} is {value!r}, which changes the model; supported is {known}.")

    def refuse_quantised(self) -> None:
        """Refuse a model whose weights are integers, or floats of few bits, with scales beside them."""
        for name in ("quantization_config", "compression_config"):
            if (value := self.take(name, None)) is not None:
                raise CheckpointError(
                    f"{self.where}: {name} is {value!r}: the weights are quantised, which is not read. Use the same "
                    "model in bfloat16 or float32 (for an adapter, as its base)."
                )

    def finish(self) -> None:
        """Refuse fields that were not read and may change what the model computes (MUST_KNOW); warn of other fields
        that were not read. IGNORED names and values that switch a field off are accepted."""
        unread = set(self.values) - self.taken
        unread = {name for name in unread if not IGNORED.fullmatch(name) and self.values[name] not in OFF}
        unknown = sorted(name for name in unread if MUST_KNOW.search(name))
        if others := sorted(unread - set(unknown)):
            warn_once(__name__, f"{self.where}: {', '.join(others)} {'is' if len(others) == 1 else 'are'} not read.")
        if unknown:
            listed = ", ".join(f"{name}={self.values[name]!r}" for name in unknown)
            raise CheckpointError(
                f"{self.where} has fields that are not understood: {listed}. They may change what the model computes. "
                "Remove those that surely do not, or load a model without them."
            )
