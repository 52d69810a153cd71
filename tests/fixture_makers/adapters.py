"""LoRA adapters as PEFT saves them, beside the fixture `qwen3`, with the logits of the adapted model.

A folder holds `adapter_config.json`, `adapter_model.safetensors` and `expected.npz` (token ids and mask of three rows
padded on the right, logits). Needs `peft` beside torch and transformers.
"""

import json
from pathlib import Path

import numpy as np
import torch
from fixture_makers.decoders import rows
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

BASE = "qwen3"

#: Folder -> settings of LoraConfig.
CASES = {
    "peft_lora": {
        "r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 7, "1.mlp.down_proj": 2},
    },
    "peft_rslora": {
        "r": 4, "lora_alpha": 3, "use_rslora": True, "layers_to_transform": [1],
        "target_modules": ["q_proj", "k_proj", "up_proj"], "modules_to_save": ["model.norm", "layernorm"],
    },
    "peft_dora": {"r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": ["k_proj", "gate_proj", "up_proj"]},
    "peft_head": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "peft_embed": {"r": 2, "lora_alpha": 4, "target_modules": ["embed_tokens", "q_proj"]},
}  # fmt: skip


def adapted(base: str | Path, settings: dict):
    """The base with random adapters; modules that are saved whole and magnitudes are changed too."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(2)
    for name, value in model.named_parameters():
        if "lora_magnitude" in name:
            value.data.mul_(1 + 0.3 * torch.rand(value.shape, generator=generator))
        elif "lora_" in name:
            value.data.copy_(0.3 * torch.randn(value.shape, generator=generator))
        elif "modules_to_save" in name:
            value.data.add_(0.2 * torch.randn(value.shape, generator=generator))
    return model.eval()


def logits_of(model) -> dict[str, np.ndarray]:
    """Token ids, mask and logits of the three rows."""
    ids, mask = rows("right")
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    return {"input_ids": ids.numpy().astype(np.int32), "mask": mask.numpy().astype(np.int32), "logits": logits.numpy()}


def make(out: Path) -> None:
    """Write every folder below `out`, where the base is."""
    for name, settings in CASES.items():
        model = adapted(out / BASE, settings)
        model.save_pretrained(out / name, save_embedding_layers=False)
        (out / name / "README.md").unlink(missing_ok=True)
        config = json.loads((out / name / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = f"../{BASE}"
        (out / name / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
        np.savez_compressed(out / name / "expected.npz", **logits_of(model))
