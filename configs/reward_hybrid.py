"""The paper's recipe: alpha * COMET of the answer + (1 - alpha) * translation similarity of the reasoning.

Command:   pbrl train configs/reward_hybrid.py --workdir runs/hybrid
Hardware:  as configs/reward_comet.py.
Expected:  it learns nothing, as configs/tiny_cpu.py; it shows the reward in a run, to be copied into your own config.
           Any two rewards can be its parts: --reward.hybrid-answer answer --reward.hybrid-reasoning alignment.
"""

from pathlib import Path

from pbrl_jax import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    tiny = load_config(str(Path(__file__).with_name("tiny_cpu.py")))
    return with_values(
        tiny,
        reward={
            "functions": ("hybrid",),
            "reward_weights": (1.0,),
            "hybrid_answer": "comet",
            "hybrid_reasoning": "translation",
            "hybrid_form": "convex",  # ASSUMED
            "answer_weight": 0.5,  # ASSUMED
            "translator": "facebook/nllb-200-distilled-600M",  # ASSUMED
            "translation_similarity": "embedding",  # ASSUMED
            "comet": "Unbabel/wmt22-comet-da",  # ASSUMED
            "comet_wiring": "reference",  # ASSUMED
        },
    )
