"""Tables from our parameters to the tensors of released checkpoints.

Every model family has a table, our parameter path -> Stored, for loading, conversion and export.
"""

import math
from typing import NamedTuple


class Stored(NamedTuple):
    """The tensors of one of our parameters in a Hugging Face checkpoint.

    One entry of our parameter is `(tensor.T if transpose else tensor).reshape(shape)`: a torch Linear is [out, in],
    ours is [in, out] with separate axes for heads and head channels. Both steps are views of the file, so that a slice
    is read without reading the rest.
    """

    #: Tensor name, with {layer} if layers are stacked and {expert} if experts are.
    template: str
    #: Shape of one entry in our layout, without the stacked axes.
    shape: tuple[int, ...]
    transpose: bool = False
    #: Layers stacked on axis 0; 0: not stacked.
    layers: int = 0
    #: Experts stacked on the next axis; 0: not stacked.
    experts: int = 0
    #: Number of leading axes of `shape` that are inputs, if transposed.
    inputs: int = 1
    #: (first row, last row + 1, number of rows) if the entry is a part of each tensor; empty: it is the full tensor.
    part: tuple[int, ...] = ()

    def full_shape(self) -> tuple[int, ...]:
        """Our parameter's shape, stacked axes included."""
        return (self.layers,) * bool(self.layers) + (self.experts,) * bool(self.experts) + self.shape

    def file_shape(self) -> tuple[int, ...]:
        """Shape of each tensor: [outputs, inputs] if transposed, one axis for a bias."""
        if self.transpose:
            return math.prod(self.shape[self.inputs :]), math.prod(self.shape[: self.inputs])
        return (math.prod(self.shape),) if self.template.endswith(".bias") else self.shape

    def names(self) -> list[str]:
        """Names of all tensors, experts varying fastest."""
        layers, experts = range(max(self.layers, 1)), range(max(self.experts, 1))
        return [self.template.format(layer=layer, expert=expert) for layer in layers for expert in experts]


def linear_names(path: str, name: str, fan_in: tuple[int, ...], fan_out: tuple[int, ...], layers: int = 0, *,
                 bias: bool = True) -> dict[str, Stored]:  # fmt: skip
    """`kernel` and `bias` at our `path` of the torch Linear called `name`."""
    kernel = Stored(f"{name}.weight", fan_in + fan_out, True, layers, inputs=len(fan_in))
    names = {f"{path}/kernel": kernel, f"{path}/bias": Stored(f"{name}.bias", fan_out, layers=layers)}
    return names if bias else {f"{path}/kernel": kernel}


def norm_names(path: str, name: str, width: int, layers: int = 0) -> dict[str, Stored]:
    """`scale` and `bias` at our `path` of the torch LayerNorm called `name`."""
    parts = {"scale": "weight", "bias": "bias"}
    return {f"{path}/{ours}": Stored(f"{name}.{theirs}", (width,), layers=layers) for ours, theirs in parts.items()}
