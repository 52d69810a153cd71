"""The verifiable answer alone, as a control: 1 where the answer equals the gold answer, in any script.

Command:   pbrl train configs/reward_verifiable.py --workdir runs/verifiable
Hardware:  any CPU; seconds, as configs/tiny_cpu.py.
Expected:  it learns nothing, as configs/tiny_cpu.py; it shows the reward in a run, to be copied into your own config.
"""

from pathlib import Path

from pbrl_jax import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    tiny = load_config(str(Path(__file__).with_name("tiny_cpu.py")))
    return with_values(
        tiny,
        reward={
            "functions": ("answer",),
            "reward_weights": (1.0,),
        },
    )
