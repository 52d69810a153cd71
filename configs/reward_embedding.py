"""The embedding reward: cosine of the encoder's vectors of response and reference, reasoning and answer apart.

Command:   pbrl train configs/reward_embedding.py --workdir runs/embedding
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
            "functions": ("cosine",),
            "reward_weights": (1.0,),
            "parts": "split",
            "answer_weight": 0.5,  # ASSUMED
            "references": "max",  # ASSUMED: where pivot.references is more than 1
        },
    )
