"""What a configuration names, opened without weights: data, tokenizers, and the configs of models."""

import os
import socket
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import ConfigError, PbrlError
from pbrl_jax.core.paths import as_path, is_remote
from pbrl_jax.core.records import Prompt
from pbrl_jax.data.load import fit_prompts
from pbrl_jax.run.assemble import evaluation_prompts, training_prompts
from pbrl_jax.run.first_prompts import first_prompts
from pbrl_jax.text.prompts import form_of
from pbrl_jax.text.tokenizers import Tokenizer, load_tokenizer
from pbrl_jax.weights.adapters import base_of, is_adapter, reading_base
from pbrl_jax.weights.folders import own_folder
from pbrl_jax.weights.hf_decoder import decoder_spec
from pbrl_jax.weights.hf_fields import read_config
from pbrl_jax.weights.hub import is_hub_id


class Elsewhere(Exception):
    """Something that is not on this machine and cannot be reached from it now; the message says where it is."""


class Opened(NamedTuple):
    """A setting, what was found there, and what is wrong with it."""

    setting: str
    found: str
    problem: str = ""


def opened(config: Config) -> list[Opened]:
    """Everything in turn; a problem with one does not hide that of another."""
    return list(_all(config))


def _all(config: Config) -> Iterator[Opened]:
    prompts: list[Prompt] = []
    tokenizers: list[Tokenizer] = []

    def data() -> str:
        prompts.extend(_on_this_machine(lambda: training_prompts(config)))
        return counted(prompts)

    def policy() -> str:
        found, tokenizer = model(config.policy.source)
        tokenizers.append(tokenizer)
        return found

    def tokenizer() -> str:
        tokenizers.append(load_tokenizer(config.policy.tokenizer))
        return f"{tokenizers[0].vocab_size} pieces"

    def lengths() -> str:
        limit = config.rollout.max_prompt_length
        kept, ids = fit_prompts(prompts, tokenizers[0], limit, config.data.overlong_prompts, **form_of(config.data))
        fit = f"{len(kept)} of {len(prompts)} prompts fit, the longest of them has {max(map(len, ids))} tokens"
        return "\n".join([fit, *first_prompts(kept, ids, tokenizers[0], form_of(config.data))])

    yield _look("data", data)
    if config.eval.source:
        yield _look("eval", lambda: counted(_on_this_machine(lambda: evaluation_prompts(config, prompts))))
    if config.pivot.source == "file":
        yield _look("pivot.file", lambda: _file(config.pivot.file))
    if config.policy.source != "random":
        yield _look("policy.source", policy)
    elif config.policy.tokenizer:
        yield _look("policy.tokenizer", tokenizer)
    if config.encoder.source != "random":
        yield _look("encoder.source", lambda: model(config.encoder.source, "encoder")[0])
    if prompts and tokenizers:
        yield _look("rollout.max_prompt_length", lengths)


def _look(setting: str, read: Callable[[], str]) -> Opened:
    try:
        return Opened(setting, read())
    except PbrlError as error:
        return Opened(setting, "", str(error))
    except Elsewhere as place:
        return Opened(setting, f"not opened: {place}")


def _on_this_machine(read: Callable[[], list[Prompt]]) -> list[Prompt]:
    """The prompts; a benchmark without a path lies where PBRL_DATA says, which a run may have and this shell not."""
    try:
        return read()
    except PbrlError as error:
        if "PBRL_DATA" not in os.environ and "PBRL_DATA" in str(error):
            raise Elsewhere("PBRL_DATA is not set here") from error
        raise


def counted(prompts: list[Prompt]) -> str:
    """`96 prompts (en 32, sw 64)`."""
    counts = ", ".join(f"{code} {count}" for code, count in sorted(Counter(p.language for p in prompts).items()))
    return f"{len(prompts)} prompts ({counts})"


def _file(path: str) -> str:
    if not path:
        raise Elsewhere("no file is named yet; give --pivot.file")
    if not as_path(path).exists():
        raise Elsewhere(f"there is no file {path!r} yet, which the expert's responses are read from")
    return path


def model(source: str, kind: str = "policy") -> tuple[str, Tokenizer]:
    """What a model's folder or hub id says of itself, and its tokenizer; no weights are read.

    Raises:
      PbrlError: no model there, one that is not supported, or a tokenizer that cannot be read.
      Elsewhere: a store, or a hub that cannot be reached.
    """
    if is_remote(source):
        raise Elsewhere(f"{source} is read when the run starts")
    folder = _hub_config(source) if is_hub_id(source) and not os.path.exists(source) else os.path.expanduser(source)
    own = own_folder(folder, kind)
    if own is not None:
        return f"{kind} of this package", load_tokenizer(str(own))
    if kind == "policy" and is_adapter(folder):
        base = base_of(folder)
        with reading_base(source, base):
            found, tokenizer = model(base)
        return f"a LoRA adapter for {base}: {found}", tokenizer
    config = read_config(folder, source)
    if config is None:
        raise ConfigError(f"No model in {source!r}: there is no config.json. Check {kind}.source.")
    layers = decoder_spec(config).layers if kind == "policy" else config.get("num_hidden_layers")
    return f"{config.get('model_type')}, {layers} layers", load_tokenizer(source)


def _hub_config(source: str) -> str:
    """The folder of the hub's cache with a model's config.json."""
    from huggingface_hub import constants, errors, hf_hub_download, try_to_load_from_cache

    name, _, revision = source.partition("@")
    cached = try_to_load_from_cache(name, "config.json", revision=revision or None)
    if isinstance(cached, str):
        return os.path.dirname(cached)
    if not reachable(constants.ENDPOINT):
        raise Elsewhere(f"{source} is on the hub, which cannot be reached now")
    try:
        return os.path.dirname(hf_hub_download(name, "config.json", revision=revision or None, etag_timeout=5))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise Elsewhere(f"{source} is on the hub, which does not answer now") from error
        raise ConfigError(
            f"The hub does not give {source}: {str(error).splitlines()[0]}. Check the name; gated ones need HF_TOKEN."
        ) from error
    except (OSError, errors.HfHubHTTPError) as error:
        raise Elsewhere(f"{source} is on the hub, which does not answer now") from error


def reachable(address: str, seconds: float = 3.0) -> bool:
    """Whether a web server answers at all; the hub's own client tries for half a minute. Behind a proxy: taken as
    reachable."""
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return False
    if urllib.request.getproxies():
        return True
    parts = urllib.parse.urlsplit(address)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 443), timeout=seconds).close()
    except OSError:
        return False
    return True
