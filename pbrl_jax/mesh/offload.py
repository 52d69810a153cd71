"""Arrays kept in host memory between uses, on platforms with pinned host memory."""

from typing import Any

import jax

from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import ConfigError

HOST_MEMORY = "pinned_host"
"""The memory kind of host memory that devices copy to and from directly."""

OFFLOADED = ("optimizer", "reference")
"""Values of `train.offload`."""


def check_offload(config: Config) -> None:
    """Raise ConfigError if train.offload has an unknown value, or a reference that does not exist or is always in use.
    """
    offload = config.train.offload
    if unknown := [name for name in offload if name not in OFFLOADED]:
        raise ConfigError(f"train.offload names {', '.join(unknown)}; expected some of {', '.join(OFFLOADED)}.")
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
    """Raise ConfigError if a device cannot keep arrays in host memory."""
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST_MEMORY not in kinds:
        raise ConfigError(
            f"train.offload needs devices with the memory kind {HOST_MEMORY!r}, and {device.device_kind} has "
            f"{', '.join(kinds) or 'none'}. Leave train.offload out, or use --policy.remat full, a larger mesh.fsdp or "
            "--lora.rank 16 to save memory."
        )


def in_host_memory(shardings: Any) -> Any:
    """The same shardings in host memory."""
    return jax.tree.map(lambda sharding: sharding.with_memory_kind(HOST_MEMORY), shardings)


def fetched(tree: Any) -> Any:
    """The tree with arrays in host memory copied to the device. For use outside of compiled programs, which may donate
    the copies."""

    def fetch(x):
        hosted = x.sharding.memory_kind == HOST_MEMORY
        return jax.device_put(x, x.sharding.with_memory_kind("device")) if hosted else x

    return jax.tree.map(fetch, tree)


def sent_back(tree: Any, before: Any) -> Any:
    """`tree` with every leaf in the memory where `before` has it."""
    return jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), tree, before)


def _is_hosted(x: Any) -> bool:
    return getattr(jax.typeof(x), "memory_space", jax.memory.Space.Device) == jax.memory.Space.Host


def on_device(tree: Any) -> Any:
    """The tree with arrays in host memory copied to the device; for traced code."""
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device) if _is_hosted(x) else x, tree)


def as_before(tree: Any, before: Any) -> Any:
    """`tree` with the leaves that `before` has in host memory copied to host memory; for traced code."""
    return jax.tree.map(lambda x, old: jax.device_put(x, jax.memory.Space.Host) if _is_hosted(old) else x, tree, before)
