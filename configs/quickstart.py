"""The quickstart's settings, for running its stages one by one or changing them.

Command:   pbrl quickstart --workdir runs/quickstart           (all stages)
           pbrl sft configs/quickstart.py --workdir runs/sft   (one stage)
Hardware:  two CPU cores, see docs/quickstart.md for minutes.
Expected:  docs/quickstart.md.
"""

from pbrl_jax import Config
from pbrl_jax.quickstart.settings import quickstart_config


def get_config() -> Config:
    return quickstart_config()
