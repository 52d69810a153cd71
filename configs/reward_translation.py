"""The translation reward: the response in English by NLLB, then chrF with the reference.

Command:   pbrl train configs/reward_translation.py --workdir runs/translation
Hardware:  a CPU with 8 GB: NLLB-200 distilled, 600 M parameters, is downloaded (licence CC-BY-NC). A folder goes too:
           --reward.translator DIR, M2M100, NLLB, or any policy, which is then asked to translate.
Expected:  it learns nothing, as configs/tiny_cpu.py; it shows the reward in a run, to be copied into your own config.
           Translations are kept in W/translations.jsonl; only responses in the right language are translated.
"""

from pathlib import Path

from pbrl_jax import Config, with_values
from pbrl_jax.run.config_file import load_config


def get_config() -> Config:
    tiny = load_config(str(Path(__file__).with_name("tiny_cpu.py")))
    return with_values(
        tiny,
        reward={
            "functions": ("translation",),
            "reward_weights": (1.0,),
            "translator": "facebook/nllb-200-distilled-600M",
            # ASSUMED: the paper names no measure; embedding, bleu, rouge_l and comet are the others.
            "translation_similarity": "chrf",
        },
    )
