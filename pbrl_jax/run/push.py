"""`pbrl push W owner/name`: a finished run's policy as a Hugging Face folder with a model card, and onto the hub."""

import os
from typing import Any

import httpx2
import jax
import yaml

from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import CheckpointError, ConfigError
from pbrl_jax.core.paths import read_json_object, work_dir, write_atomic
from pbrl_jax.core.version import __version__
from pbrl_jax.run.config_file import run_config
from pbrl_jax.weights.hf_export import export_policy
from pbrl_jax.weights.hub import HUB_ID, is_hub_id
from pbrl_jax.weights.policies import load_policy

CARD = """# {name}

{base}, trained by {algorithm} with [PB-RLSVR](https://arxiv.org/abs/2509.25543), as `pbrl_jax` {version} (jax {jax})
implements it: rewards compare responses in {languages} with English references.

| | |
|---|---|
| languages | {languages} |
| prompts | {data} |
| references | {references} |
| rewards (weight) | {rewards} |
| steps | {steps} |

{metrics}
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (kind.from_pretrained("{repository}") for kind in (AutoModelForCausalLM, AutoTokenizer))
```

{licence}
"""


def main(workdir: str, repository: str, private: bool = False, dry_run: bool = False) -> None:
    """Write W/hub and upload it.

    Args:
      workdir: of a finished training.
      repository: owner/name on the hub; made where it does not exist.
      private: for a repository that is made.
      dry_run: write the folder, upload nothing.

    Raises:
      ConfigError: no finished run, or no such name of a repository.
      CheckpointError: the hub refuses the upload.
    """
    work = work_dir(workdir)
    config, final = run_config(workdir), read_json_object(work.final)
    if config is None or not final:
        raise ConfigError(f"{workdir!r} holds no finished run: there is no final.json. Give the work directory of one.")
    match = HUB_ID.fullmatch(repository)
    if match is None or match.group("revision"):
        raise ConfigError(f"{repository!r} is no name of a repository; expected owner/name.")
    folder = str(work.root / "hub")
    export_policy(load_policy(workdir, param_dtype="stored"), folder)
    licence = "" if dry_run else licence_of(config.policy.source)
    write_atomic(os.path.join(folder, "README.md"), card(config, final, repository, licence))
    if dry_run:
        print(f"{folder}: what would be uploaded to {repository}, with its card README.md.")
        return
    from huggingface_hub import HfApi, errors

    try:
        HfApi().create_repo(repository, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Step {final['step']}")
    except (errors.HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"The hub does not take {repository}: {str(error).splitlines()[0]}. Log in with `hf auth login` or set "
            f"HF_TOKEN with write access; {folder} stays as it is."
        ) from error
    print(f"{folder} is on the hub as {repository}.")


def licence_of(base: str) -> str:
    """The licence that the base model's card on the hub states; "" where there is none to read."""
    if not is_hub_id(base):
        return ""
    from huggingface_hub import HfApi, errors

    try:
        found = HfApi().model_info(base.partition("@")[0], timeout=10).card_data
    except (errors.HfHubHTTPError, httpx2.HTTPError, OSError):
        return ""
    return str(found.get("license") or "") if found is not None else ""


def card(config: Config, final: dict[str, Any], repository: str, licence: str) -> str:
    """The model card: what the policy was trained from, on and for, and how well it does."""
    base = config.policy.source
    published = is_hub_id(base)
    head: dict[str, Any] = {
        "language": list(config.data.languages), "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["pbrl_jax", config.algo.name],
    }  # fmt: skip
    head |= {"base_model": base.partition("@")[0]} if published else {}
    head |= {"license": licence} if licence else {}
    rewards = zip(config.reward.functions, config.reward.reward_weights, strict=True)
    rows = [f"| {name.removeprefix('eval/')} | {value:.4g} |" for name, value in final["metrics"].items()]
    table = "\n".join(["| evaluation | value |", "|---|---:|", *rows, ""]) if rows else "It has not been evaluated.\n"
    text = CARD.format(
        name=repository.partition("/")[2], repository=repository, algorithm=config.algo.name, version=__version__,
        jax=jax.__version__, base=f"[{base}](https://huggingface.co/{base.partition('@')[0]})" if published
        else "A new model" if base == "random" else "A local model",
        languages=", ".join(config.data.languages), references=config.pivot.source, steps=final["step"], metrics=table,
        data=f"source {config.data.source}, split {config.data.split}",
        rewards=", ".join(f"{name} ({weight:g})" for name, weight in rewards),
        licence=f"Licence: {licence}, that of the base model." if licence else "The base model's licence applies.",
    )  # fmt: skip
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n{text}"
