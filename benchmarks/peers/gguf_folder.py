"""A GGUF file as a folder of safetensors, by transformers and torch.

  python benchmarks/peers/gguf_folder.py MODEL.gguf FOLDER

Quantised values are written as the float32 numbers that they stand for.
"""

import argparse
import copy
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("source", type=Path, help="a .gguf file")
    parser.add_argument("target", type=Path, help="the folder to write")
    flags = parser.parse_args(arguments)
    if not flags.source.is_file():
        parser.error(f"there is no file {flags.source}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"gguf_file": flags.source.name}
    read = AutoModelForCausalLM.from_pretrained(str(flags.source.parent), dtype=torch.float32, **place)
    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(flags.target)
    AutoTokenizer.from_pretrained(str(flags.source.parent), **place).save_pretrained(flags.target)
    print(f"{flags.target}: {model.num_parameters() / 1e6:.1f} million parameters")


if __name__ == "__main__":
    main()
