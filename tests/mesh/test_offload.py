"""What may lie in the host's memory, and where there is none."""

from types import SimpleNamespace

import pytest

from pbrl_jax import Config, with_values
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.mesh.offload import check_host_memory
from pbrl_jax.run.check import validate

REFUSED = {
    "unknown": ({"offload": ("optimiser",)}, {}, "names optimiser; expected some of optimizer, reference"),
    "no reference": ({"offload": ("reference",)}, {"algo": {"beta": 0.0}}, "Use --train.offload optimizer"),
    "adapters": ({"offload": ("reference",)}, {"algo": {"beta": 0.1}, "lora": {"rank": 2}}, "the frozen weights"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    train, others, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        validate(with_values(Config(), train=train, **others), 1)
    validate(with_values(Config(), train={"offload": ("optimizer", "reference")}, algo={"beta": 0.1}), 1)


def test_a_platform_without_such_a_memory_is_refused():
    memories = [SimpleNamespace(kind="device")]
    device = SimpleNamespace(device_kind="a chip", addressable_memories=lambda: memories)
    with pytest.raises(ConfigError, match="'pinned_host', and a chip has device. Leave train.offload out"):
        check_host_memory(device)
    memories.append(SimpleNamespace(kind="pinned_host"))
    check_host_memory(device)
