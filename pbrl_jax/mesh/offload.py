"""Arrays that lie in the host's memory between their uses, where the platform has such a memory."""

from typing import Any

import jax

from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import ConfigError

HOST_MEMORY = "pinned_host"
"""The kind of memory that a device copies from and to by itself."""

OFFLOADED = ("optimizer", "reference")
"""What `train.offload` may name."""


def check_offload(config: Config) -> None:
    """Refuse to offload what does not exist, or is in use all the time (ConfigError)."""
    offload = config.train.offload
    if other := [name for name in offload if name not in OFFLOADED]:
        raise ConfigError(f"train.offload names {', '.join(other)}; expected some of {', '.join(OFFLOADED)}.")
    if "reference" not in offload:
        return
    if config.algo.beta == 0:
        raise ConfigError(
            "train.offload names the reference, but algo.beta is 0 and there is none. Use --train.offload optimizer."
        )
    if config.lora.rank:
        raise ConfigError(
            "train.offload names the reference, but with adapters it is the frozen weights, which every forward pass "
            "reads. Use --train.offload optimizer, or --lora.quantization int8."
        )


def check_host_memory(device: Any) -> None:
    """Refuse a device that cannot keep arrays in the host's memory (ConfigError)."""
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST_MEMORY not in kinds:
        raise ConfigError(
            f"train.offload needs devices that reach the memory {HOST_MEMORY!r}, and {device.device_kind} has "
            f"{', '.join(kinds) or 'none'}. Leave train.offload out, or use --policy.remat full, a larger mesh.fsdp or "
            "--lora.rank 16 to save memory."
        )


def in_host_memory(shardings: Any) -> Any:
    """The same shardings, in the host's memory."""
    return jax.tree.map(lambda sharding: sharding.with_memory_kind(HOST_MEMORY), shardings)


def fetched(tree: Any) -> Any:
    """The tree with what lies in the host's memory copied to the device, outside of a compiled program: there the copy
    may be donated, so that a result takes its place."""

    def here(x):
        hosted = x.sharding.memory_kind == HOST_MEMORY
        return jax.device_put(x, x.sharding.with_memory_kind("device")) if hosted else x

    return jax.tree.map(here, tree)


def sent_back(tree: Any, before: Any) -> Any:
    """`tree` with every leaf in the memory that it lies in in `before`."""
    return jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), tree, before)


def _is_hosted(x: Any) -> bool:
    return getattr(jax.typeof(x), "memory_space", jax.memory.Space.Device) == jax.memory.Space.Host


def on_device(tree: Any) -> Any:
    """The tree with what lies in the host's memory copied to the device; traceable."""
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device) if _is_hosted(x) else x, tree)


def as_before(tree: Any, before: Any) -> Any:
    """`tree` with the leaves in the host's memory that lie there in `before`; traceable."""
    return jax.tree.map(lambda x, old: jax.device_put(x, jax.memory.Space.Host) if _is_hosted(old) else x, tree, before)
