"""COMET on the answer, after translation: source, translation and English reference (paper, reward families).

Command:   pbrl train configs/reward_comet.py --workdir runs/comet
Hardware:  a CPU with 16 GB: NLLB-200 distilled and wmt22-comet-da (0.6 B parameters each) are downloaded; folders go
           too: --reward.translator DIR --reward.comet DIR.
Expected:  it learns nothing, as configs/tiny_cpu.py; it shows the reward in a run, to be copied into your own config.
           Other wirings: --reward.comet-wiring quality with Unbabel/wmt22-cometkiwi-da (gated), or direct.
"""

from pathlib import Path

from pbrl_jax import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    tiny = load_config(str(Path(__file__).with_name("tiny_cpu.py")))
    return with_values(
        tiny,
        reward={
            "functions": ("comet",),
            "reward_weights": (1.0,),
            "translator": "facebook/nllb-200-distilled-600M",  # ASSUMED
            "comet": "Unbabel/wmt22-comet-da",  # ASSUMED
            "comet_wiring": "reference",  # ASSUMED
        },
    )
