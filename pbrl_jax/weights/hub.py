"""From the name of a model to a local folder, whose files can be memory-mapped.

The name is a folder, a path in an object store (`gs://bucket/model`), or a hub id (`Qwen/Qwen3-0.6B`, with `@revision`
for a fixed version). Files of the hub are downloaded once. From a store, small files and torch files are copied once;
safetensors files are not copied, and ranges of them are read as needed.
"""

import contextlib
import hashlib
import json
import os
import re

from etils import epath

from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.paths import CHUNK_BYTES, as_path, is_remote, write_atomic
from pbrl_jax.logs.progress import Progress
from pbrl_jax.weights.safetensors_file import POINTER

#: Files of a model: configuration, tokenizer, chat template and weights.
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.yaml")
WEIGHT_FILES = ("*.safetensors",)
TORCH_FILES = ("*pytorch_model*.bin", "adapter_model.bin", "*.ckpt")
#: Copies of the same weights in other formats.
LEFT_OUT = ("original/*", "onnx/*", "openvino/*", "consolidated*", "*.onnx")

HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
RECORD = "copied_from.json"


def is_hub_id(source: str) -> bool:
    """Whether `source` has the form `owner/name` and `owner` is not an existing folder."""
    return HUB_ID.fullmatch(source) is not None and not os.path.isdir(source.split("/")[0])


def local_copy(source: str | os.PathLike) -> str:
    """The local folder of a model; a name that is neither remote nor a hub id is returned, with `~` as the home folder.

    Raises:
      CheckpointError: the hub or the store cannot be reached, has no such model, or denies access to it.
      ConfigError: an address that is no path, as https://...
    """
    source = os.fspath(source)
    if is_remote(source):
        return copy_remote(os.fspath(as_path(source)))
    path = os.path.expanduser(source)
    if os.path.exists(path) or not is_hub_id(source):
        return path
    return download(source)


def download(source: str) -> str:
    """The snapshot of a hub id in the hub's cache (`HF_HOME`), downloaded if necessary.

    Raises:
      CheckpointError: gated, private, unknown or unreachable; the message says what to do.
    """
    from huggingface_hub import errors, snapshot_download

    name, _, suffix = source.partition("@")
    revision = suffix or None

    def fetch(*patterns: str) -> str:
        return snapshot_download(name, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(LEFT_OUT))

    try:
        folder = fetch(*SMALL_FILES, *WEIGHT_FILES)
        torch_files = _torch_files(folder)
        return fetch(*SMALL_FILES, *torch_files) if torch_files else folder
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name} is gated. Accept its terms at https://huggingface.co/{name}, then set HF_TOKEN to a token of that "
            "account (`export HF_TOKEN=hf_...`)."
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise CheckpointError(
            f"{source!r} is no folder here, and the hub shows no model {name!r}. Check the spelling; for a private "
            "model set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{name} has no revision {revision!r}. Leave `@{revision}` out, or name a commit."
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{source!r} is no folder here, and the hub cannot be reached ({_first_line(error)}). Connect to the "
            "network, or give the folder of a download."
        ) from error


def _torch_files(folder: str) -> list[str]:
    """Patterns of torch files that a snapshot needs: all where it has no safetensors, else those of the modules without
    (a Dense module of sentence-transformers may have other files than its transformer)."""
    files = {path: names for path, _, names in os.walk(folder)}
    bare = [path for path, names in files.items() if not any(name.endswith(".safetensors") for name in names)]
    if len(bare) == len(files):
        return list(TORCH_FILES)
    modules = [
        path for path in bare if "config.json" in files[path] and _has_weights(os.path.join(path, "config.json"))
    ]
    return [os.path.normpath(os.path.join(os.path.relpath(path, folder), "pytorch_model*.bin")) for path in modules]


def _has_weights(config: str) -> bool:
    """Whether a config.json is that of a transformer or of a Dense module."""
    with open(config, encoding="utf-8", errors="replace") as file:
        return re.search(r'"(model_type|in_features)"', file.read()) is not None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def copy_remote(source: str) -> str:
    """Copy a folder of an object store, with a pointer file in place of every safetensors file.

    Files with unchanged size and modification time are not copied again. If the store gives no times, all are copied.

    Raises:
      CheckpointError: no such folder, or the store cannot be read.
    """
    remote = epath.Path(source)
    cache = os.path.expanduser(os.environ.get("PBRL_MODEL_CACHE") or "~/.cache/pbrl_jax/models")
    target = os.path.join(cache, hashlib.sha256(source.rstrip("/").encode()).hexdigest()[:24])
    try:
        files = _remote_files(remote)
    except Exception as error:  # the error types depend on the store's client
        raise CheckpointError(
            f"{source} cannot be read ({_first_line(error)}). Check the path, and that this machine's account may read "
            "the bucket (`gcloud auth application-default login`)."
        ) from error
    if not files:
        raise CheckpointError(f"No model in {source}: the folder is empty or does not exist. Check the path.")
    record = _read_record(target)
    todo = {name: stamp for name, (_, stamp) in files.items() if record.get(name) != stamp or not stamp[1]}
    if todo:
        total = sum(stamp[0] for stamp in todo.values())
        with Progress(f"copying {source}", max(1, total >> 20), unit="MiB") as progress:
            for name, stamp in todo.items():
                _copy(files[name][0], os.path.join(target, name), progress)
                record[name] = stamp
                write_atomic(os.path.join(target, RECORD), json.dumps({"source": source, "files": record}))
    for name in record.keys() - files.keys():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(target, name))
    return target


def _remote_files(folder: epath.Path, below: str = "") -> dict[str, tuple[epath.Path, list[int]]]:
    """Local name -> (file, [size, modification time]) of the files to copy, including those in subfolders (modules of
    sentence-transformers, or models in a work directory).

    A safetensors file is represented by its pointer, which does not depend on its content.
    """
    files: dict[str, tuple[epath.Path, list[int]]] = {}
    for child in folder.iterdir():
        name = f"{below}{child.name}"
        if child.is_dir():
            if not below:
                files |= _remote_files(child, f"{name}/")
        elif any(map(child.match, WEIGHT_FILES)):
            files[f"{name}{POINTER}"] = child, [0, 1]
        elif any(map(epath.Path(name).match, (*SMALL_FILES, *TORCH_FILES))):
            stat = child.stat()
            files[name] = child, [int(stat.length), int(stat.mtime)]
    return files


def _read_record(target: str) -> dict[str, list[int]]:
    try:
        with open(os.path.join(target, RECORD), encoding="utf-8") as file:
            record = json.load(file)["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {name: stamp for name, stamp in record.items() if os.path.exists(os.path.join(target, name))}


def _copy(file: epath.Path, target: str, progress: Progress) -> None:
    if target.endswith(POINTER):
        write_atomic(target, os.fspath(file))
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    part = f"{target}.part"
    with file.open("rb") as reader, open(part, "wb") as writer:
        while chunk := reader.read(16 * CHUNK_BYTES):
            writer.write(chunk)
            progress.advance(len(chunk) >> 20)
    os.replace(part, target)
