"""Models that a configuration names, looked at without their weights, and whether servers answer."""

import os
import socket
import urllib.parse
import urllib.request
from functools import partial
from typing import Any

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import is_remote
from pbrl_jax.core.urls import hide_credentials
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.text.tokenizers import TOKENIZER_FILES, Tokenizer, load_tokenizer
from pbrl_jax.weights.adapters import base_of, is_adapter, reading_base
from pbrl_jax.weights.comet_checkpoint import CHECKPOINT, HPARAMS
from pbrl_jax.weights.encoders import encoder_tokenizer, folder_spec
from pbrl_jax.weights.folders import check_vocabulary, own_folder, read_record, read_spec
from pbrl_jax.weights.hf_decoder import decoder_spec, kept_fields
from pbrl_jax.weights.hf_fields import read_config
from pbrl_jax.weights.hf_m2m100 import MODEL_TYPE
from pbrl_jax.weights.hub import is_hub_id
from pbrl_jax.weights.policies import Policy
from pbrl_jax.weights.tensors import CONFIG


class Elsewhere(Exception):
    """Something that is not on this machine and cannot be reached from it now; the message says where it is."""


def policy(source: str, whole: bool = True) -> tuple[str, Policy]:
    """What the folder or hub id of a policy says of itself, and the policy without its parameters.

    Args:
      whole: False for the base of an adapter, which may bring other tokens.

    Raises:
      PbrlError: no model there, one that is not supported, or a tokenizer that cannot be read.
      Elsewhere: a store, or a hub that cannot be reached.
    """
    folder = _folder(source)
    own = own_folder(folder, "policy")
    if own is not None:
        _, spec, record = read_record(folder, "policy", partial(read_spec, DecoderSpec), source)
        return "policy of this package", Policy(spec, None, load_tokenizer(str(own)), "", record.get("kept"))
    if is_adapter(folder):
        base = base_of(folder)
        with reading_base(source, base):
            found, described = policy(base, whole=False)
        return f"a LoRA adapter for {base}: {found}", described
    config = _config(folder, source)
    spec, words = decoder_spec(config), load_tokenizer(source)
    if whole:
        check_vocabulary(words, spec.vocab_size, source)
    return f"{config.get('model_type')}, {spec.layers} layers", Policy(spec, None, words, "", kept_fields(config))


def tokenizer(source: str) -> Tokenizer:
    """The tokenizer of a file, folder or hub id. Errors as `policy`."""
    if _on_hub(source) and not any(_kept(source, file) for file in TOKENIZER_FILES):
        _reach_hub(source)
    return load_tokenizer(source)


def encoder(source: str, pooling: str = "") -> tuple[str, Tokenizer]:
    """As `policy`, of an encoder; `pooling` as in load_encoder."""
    folder = _folder(source)
    own = own_folder(folder, "encoder")
    if own is not None:
        return "encoder of this package", load_tokenizer(str(own))
    if not _on_hub(source):  # the hub's cache may have config.json alone
        folder_spec(folder, pooling or None)
    config = _config(folder, source)
    return f"{config.get('model_type')}, {config.get('num_hidden_layers')} layers", encoder_tokenizer(source)


def translator(source: str) -> str:
    """What the folder or hub id of a translator says of itself: an M2M100 or NLLB model, or a policy. Errors as
    `policy`."""
    folder = _folder(source)
    config = read_config(folder, source) or {}
    return MODEL_TYPE if config.get("model_type") == MODEL_TYPE else policy(source)[0]


def comet(source: str) -> str:
    """What is in the folder of a COMET model. Errors as `policy`."""
    folder = _folder(source, HPARAMS)
    if own_folder(folder, "comet"):
        return "comet of this package"
    names = (HPARAMS,) if _on_hub(source) else (HPARAMS, CHECKPOINT)
    if missing := [name for name in names if not os.path.exists(os.path.join(folder, name))]:
        raise ConfigError(
            f"No COMET model in {source!r}: there is no {' and no '.join(missing)}. Give a folder of unbabel-comet, "
            "one that `pbrl convert` wrote, or a hub id such as Unbabel/wmt22-comet-da."
        )
    return "comet"


def server(address: str) -> str:
    """An address at which a server answers.

    Raises:
      ConfigError: no address.
      Elsewhere: none does, now and from here.
    """
    shown = hide_credentials(address)
    try:
        answers = reachable(address)
    except ValueError as error:
        raise ConfigError(f"{shown} is no address of a server: {error}. Expected http://HOST:PORT.") from error
    if not answers:
        raise Elsewhere(f"nothing answers at {shown} now")
    return shown


def _folder(source: str, file: str = CONFIG) -> str:
    """The local folder of a source; of a hub id that of the cache with its `file`."""
    if is_remote(source):
        raise Elsewhere(f"{source} is read when the run starts")
    if _on_hub(source):
        return _hub_folder(source, file)
    return os.path.expanduser(source)


def _config(folder: str, source: str) -> dict[str, Any]:
    config = read_config(folder, source)
    if config is None:
        raise ConfigError(f"No model in {source!r}: there is no {CONFIG}. Give a model's folder or its hub id.")
    return config


def _hub_folder(source: str, file: str) -> str:
    """The folder of the hub's cache with a model's `file`, which is downloaded where it is missing."""
    from huggingface_hub import errors, hf_hub_download

    if cached := _kept(source, file):
        return os.path.dirname(cached)
    _reach_hub(source)
    name, _, revision = source.partition("@")
    try:
        return os.path.dirname(hf_hub_download(name, file, revision=revision or None, etag_timeout=5))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise Elsewhere(f"{source} is on the hub, which does not answer now") from error
        raise ConfigError(
            f"The hub does not give {source}: {str(error).splitlines()[0]}. Check the name; gated ones need HF_TOKEN."
        ) from error
    except (OSError, errors.HfHubHTTPError) as error:
        raise Elsewhere(f"{source} is on the hub, which does not answer now") from error


def _on_hub(source: str) -> bool:
    return is_hub_id(source) and not os.path.exists(source)


def _kept(source: str, file: str) -> str:
    """The path of a hub id's file in the hub's cache; empty without one."""
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = source.partition("@")
    found = try_to_load_from_cache(name, file, revision=revision or None)
    return found if isinstance(found, str) else ""


def _reach_hub(source: str) -> None:
    """Raise Elsewhere where the hub cannot be reached."""
    from huggingface_hub import constants

    if os.environ.get("HF_HUB_OFFLINE") == "1" or not reachable(constants.ENDPOINT):
        raise Elsewhere(f"{source} is on the hub, which cannot be reached now")


def reachable(address: str, seconds: float = 3.0) -> bool:
    """Whether a web server answers at all; the hub's own client tries for half a minute. Behind a proxy: taken as
    reachable."""
    parts = urllib.parse.urlsplit(address)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    if urllib.request.getproxies():
        return True
    try:
        socket.create_connection((parts.hostname or "", port), timeout=seconds).close()
    except OSError:
        return False
    return True
