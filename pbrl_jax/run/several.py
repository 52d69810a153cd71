"""A run assembled by several hosts: the first writes what the others find, and all check that they run the same."""

import hashlib
import secrets
from collections.abc import Callable
from typing import Any

import jax

from pbrl_jax.config.serialize import to_json
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import WorkDir, write_atomic
from pbrl_jax.mesh.agree import agreed, exchange, host, host_array, host_count, in_turn, is_first
from pbrl_jax.rewards.combine import policy_users
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.weights.policies import Policy, save_policy


def check_shared(work: WorkDir) -> None:
    """Refuse a work directory that is not the same on every host.

    Raises:
      HostError: names the hosts that see another one.
    """
    if host_count() == 1:
        return
    file, mark = work.root / "hosts", secrets.token_hex(8)
    agreed("mark", lambda: write_atomic(file, mark) if is_first() else None)
    mark = exchange("mark", mark)[0]

    def look() -> None:
        if not file.exists() or file.read_text() != mark:
            raise ConfigError(
                f"Host {host()} does not see what host 0 writes to --workdir {work.root}. Several hosts need one that "
                "all of them see: gs://BUCKET/runs/x, or a folder on a shared disk."
            )

    agreed("work directory", look)


def check_rewards(experiment: Experiment) -> None:
    """Refuse a reward that asks the start policy where no host has all of it (ConfigError)."""
    asked = policy_users(experiment.config.reward)
    if asked and not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(experiment.policy.params)):
        raise ConfigError(
            f"The reward asks the start policy ({', '.join(asked)}), which lies in parts on {host_count()} "
            "hosts. Train on one host, or choose another reward or translator."
        )


def assembled(build: Callable[[], Experiment], work: WorkDir) -> Experiment:
    """The experiment, built by host 0 and then by the others, who find its vocabulary and vectors.

    Raises:
      HostError: a host failed, sees another work directory, or has other data, models or settings.
    """
    check_shared(work)
    experiment = in_turn("assemble", build)
    check_rewards(experiment)
    config = hashlib.sha256(to_json(experiment.config).encode()).hexdigest()
    parts = {"settings": config, "jax": jax.__version__, **experiment.fingerprints}
    told = exchange("experiment", parts)
    for number, other in enumerate(told):
        if differing := [name for name in parts if other.get(name) != told[0][name]]:
            raise ConfigError(
                f"Host {number} has other {', '.join(differing)} than host 0. Give all hosts the same command, files "
                "and versions."
            )
    return experiment


def save_from_first(policy: Policy, folder: str) -> None:
    """The policy in `folder`, written by host 0; the others give it their shards."""
    whole: dict[str, Any] = policy.params
    if host_count() > 1:
        whole = jax.tree.map(host_array, policy.params)
    agreed("policy", lambda: save_policy(policy._replace(params=whole), folder) if is_first() else None)
