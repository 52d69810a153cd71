"""`--dry-run`: check a configuration and say what it would do, without loading anything."""

import jax

from pbrl_jax.core.config import Config
from pbrl_jax.core.serialize import to_json
from pbrl_jax.core.validate import batch_arithmetic
from pbrl_jax.rewards.combine import check_reward
from pbrl_jax.run.assemble import check_start


def main(config: Config) -> None:
    """Validate, then print the resolved configuration and the batch arithmetic."""
    check_start(config)
    check_reward(config.reward)
    print(to_json(config))
    print(batch_arithmetic(config, jax.device_count()))
