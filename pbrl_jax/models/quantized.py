"""Kernels in eight or four bits, by qwix: stored quantised, and dequantised layer by layer where they are used."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from pbrl_jax.core.errors import ConfigError


def _qwix():
    try:
        import qwix
    except ImportError as error:
        raise ConfigError(
            "lora.quantization needs the package qwix, which is not installed. Use `pip install -e '.[lora]'`, or "
            "--lora.quantization none."
        ) from error
    return qwix


def is_quantized(kernel: Any) -> bool:
    """Whether a kernel is a result of `quantized`."""
    return hasattr(kernel, "qvalue")


def dequantized(kernel: Any) -> Any:
    """A quantised kernel as an array of the type of its scales."""
    return _qwix().dequantize(kernel)


def with_scales(kernel: Any, dtype: Any) -> Any:
    """A quantised kernel with its scales in another type, which is also that of the dequantised kernel."""
    return dataclasses.replace(kernel, scale=kernel.scale.astype(dtype))


def quantized(kernel: jnp.ndarray, in_axes: int, kind: str, tile_size: int) -> Any:
    """A stacked kernel [layers, inputs..., outputs...] with one scale per layer, output and tile of inputs.

    Args:
      kernel: an array of floating type.
      in_axes: how many axes are inputs.
      kind: int8, int4 or nf4 (the sixteen quantiles of a normal distribution; Dettmers et al., 2023, arXiv
        2305.14314).
      tile_size: consecutive inputs that share a scale, at most; the largest divisor of the last input axis is taken.

    Returns:
      A qwix.QArray: a pytree of quantised values and scales.

    Raises:
      ConfigError: qwix is not installed.
    """
    last = in_axes  # the last input axis; axis 0 is the layer
    size = max(n for n in range(1, tile_size + 1) if kernel.shape[last] % n == 0)
    channelwise = [axis for axis in range(kernel.ndim) if axis != last]
    return _qwix().quantize(kernel, kind, channelwise_axes=channelwise, tiled_axes={last: size})
