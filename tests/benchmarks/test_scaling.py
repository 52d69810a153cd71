"""What a device computes falls as one over the devices; the update never holds logits of all positions."""

import pytest
import scaling
import update_memory
from tiny_policy import quick_compiles  # noqa: F401

SIZES = "--layers 1 --width 32 --vocab 512 --prompts 8 --group 2 --prompt-len 8 --response-len 8".split()


@pytest.mark.serial
def test_flops_of_a_device_fall_with_the_devices():
    records = scaling.measure(scaling.parse([*SIZES, "--devices", "1", "8", "--no-run"]))
    alone, shared = (record["programs"] for record in records)
    for name in ("generate", "reward", "update", "sft", "dpo", "encoder"):
        assert shared[name]["flops"] * 8 == pytest.approx(alone[name]["flops"], rel=0.1), name
        assert shared[name]["bytes"] < alone[name]["bytes"], name
    assert alone["update"]["sent"] == 0 < shared["update"]["sent"]
    lines = scaling.table(records).splitlines()
    assert len(lines) == 2 + 2 * 6 and lines[2].startswith("| generate | 1 | ") and "| - | - |" in lines[2]


def test_temporaries_stay_under_a_quarter_of_a_plain_update():
    """At Qwen3's vocabulary of 151,936."""
    sizes = "--layers 1 --width 32 --prompts 2 --group 8 --prompt-len 16 --response-len 112 --logprob-chunk 16"
    flags = update_memory.parse(sizes.split())
    assert flags.vocab == 151_936
    found = update_memory.measure(flags)
    assert found["ratio"] < 0.25 and found["plain"] > found["logits"] == 4 * 16 * 128 * 151_936
