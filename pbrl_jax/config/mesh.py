"""Settings of the device mesh; `config.tree` holds the whole tree."""

from dataclasses import dataclass

from pbrl_jax.config.fields import operational


@dataclass(frozen=True)
class MeshConfig:
    """How devices share rows and parameters; the product is the number of devices."""

    data: int = operational(-1)
    """Devices that hold different rows and whole parameters; -1: what the others leave."""
    fsdp: int = operational(1)
    """Devices that hold different rows and share each parameter."""
    tensor: int = operational(1)
    """Devices that share each matrix product."""
