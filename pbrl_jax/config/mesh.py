"""Settings of the device mesh; `config.tree` holds the whole tree."""

from dataclasses import dataclass

from pbrl_jax.config.fields import operational


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; their product is the number of devices."""

    data: int = operational(-1)
    """Data parallelism: different rows, replicated parameters; -1: the remaining devices."""
    fsdp: int = operational(1)
    """Fully sharded data parallelism: different rows, sharded parameters."""
    tensor: int = operational(1)
    """Tensor parallelism: sharded matrix products."""
