"""Small parts shared by the models: norms, projections, rotary positions, the gated feed-forward."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pbrl_jax.core.errors import lookup
from pbrl_jax.models.int8 import Int8Array
from pbrl_jax.models.precision import wide_type, widened
from pbrl_jax.models.quantized import dequantized, is_quantized
from pbrl_jax.models.specs import DecoderSpec


def apply(module: nn.Module, params: Any, *args: Any, **kwargs: Any) -> Any:
    """What a module computes with these parameters, given as the tree below "params"."""
    return module.apply({"params": params}, *args, **kwargs)


def along_last(vector: jax.Array, ndim: int) -> jax.Array:
    """A vector as an array of `ndim` axes that broadcasts along the last one."""
    return vector.reshape((1,) * (ndim - 1) + (-1,))


class RMSNorm(nn.Module):
    """x / rms(x) * scale, computed in float32 (Zhang and Sennrich 2019, arXiv 1910.07467).

    With `offset` the factor is 1 + scale (Gemma). With `centered` the mean is subtracted first: LayerNorm without a
    bias (Cohere).
    """

    eps: float
    offset: bool = False
    centered: bool = False

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.zeros_init() if self.offset else nn.initializers.ones_init()
        scale = self.param("scale", init, (x.shape[-1],))
        wide = widened(x)
        if self.centered:
            wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        factor = scale.astype(normed.dtype)
        if self.offset:
            factor = 1 + factor
        return (normed * along_last(factor, x.ndim)).astype(x.dtype)


class Projection(nn.Module):
    """A linear map from the trailing `in_axes` axes to `features`, in the compute type of the input.

    Where the parameters hold an adapter beside the kernel (models.lora), its product is added. The kernel may be
    quantised: by qwix, or for sampling (models.int8).
    """

    features: tuple[int, ...]
    in_axes: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x):
        in_shape = x.shape[x.ndim - self.in_axes :]
        fan_in, fan_out = math.prod(in_shape), math.prod(self.features)
        # Half the variance-preserving scale: from few rows, small initial weights generalise better than larger ones.
        kernel: Any = self.get_variable("params", "kernel")
        if is_quantized(kernel):
            kernel = dequantized(kernel)
        elif not isinstance(kernel, Int8Array):
            kernel = self.param("kernel", nn.initializers.normal(0.5 * fan_in**-0.5), (*in_shape, *self.features))
        # As one matrix: the gradient of a product with several axes is twice as slow on CPU.
        x_rows = x.reshape(-1, fan_in)
        if isinstance(kernel, Int8Array):
            matrix = kernel.integers.astype(x.dtype).reshape(fan_in, fan_out)
            wide = jnp.matmul(x_rows, matrix, preferred_element_type=wide_type(x.dtype))
            y = (wide * kernel.step.reshape(1, fan_out)).astype(x.dtype)
        else:
            y = x_rows @ kernel.astype(x.dtype).reshape(fan_in, fan_out)
        if self.has_variable("params", "lora_a"):
            low: jax.Array = self.get_variable("params", "lora_a")
            high: jax.Array = self.get_variable("params", "lora_b")
            y = y + (x_rows @ low.astype(x.dtype).reshape(fan_in, -1)) @ high.astype(x.dtype).reshape(-1, fan_out)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), self.features)
            y = (y + widened(bias).reshape(1, fan_out)).astype(x.dtype)  # its gradient is a sum over all rows
        return y.reshape(*x.shape[: x.ndim - self.in_axes], *self.features)


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function at x (Hendrycks and Gimpel 2016, arXiv 1606.08415), in float32 or wider.

    By erf, as in PyTorch: flax's form by erfc is more exact in the far negative tail, but took two fifths of the
    reward's time on CPU.
    """
    wide = widened(x)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


#: Activation of a feed-forward's gate by name.
ACTIVATIONS = {"silu": nn.silu, "gelu_tanh": functools.partial(nn.gelu, approximate=True)}


class XieluMLP(nn.Module):
    """down(xielu(up(x))) (Huang and Schlag 2024, arXiv 2411.13010): for positive x, a x^2 + x / 2, otherwise
    n (e^min(x, -1e-6) - 1 - x) + x / 2, with a = softplus(alpha_p) and n = 1/2 + softplus(alpha_n)."""

    ffn: int

    @nn.compact
    def __call__(self, x):
        start = {"alpha_p": 0.8, "alpha_n": 0.3}
        alpha_p, alpha_n = (
            self.param(name, nn.initializers.constant(math.log(math.expm1(value))), (1,))
            for name, value in start.items()
        )
        up = widened(Projection((self.ffn,), name="up")(x))
        rising = along_last(nn.softplus(widened(alpha_p)), up.ndim) * up * up
        falling = along_last(0.5 + nn.softplus(widened(alpha_n)), up.ndim) * (jnp.expm1(jnp.minimum(up, -1e-6)) - up)
        hidden = jnp.where(up > 0, rising, falling) + 0.5 * up
        return Projection((x.shape[-1],), name="down")(hidden.astype(x.dtype))


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202)."""

    ffn: int
    activation: str = "silu"

    @nn.compact
    def __call__(self, x):
        activation = lookup(ACTIVATIONS, self.activation, "activation")
        gate = Projection((self.ffn,), name="gate")(x)
        up = Projection((self.ffn,), name="up")(x)
        return Projection((x.shape[-1],), name="down")(activation(gate) * up)


def rope_frequencies(spec: DecoderSpec, local: bool = False) -> Float[Array, "half"]:
    """Inverse wavelengths of the rotation planes (C/2, or half the rotary_dim), in float32, with the spec's scaling.

    Llama 3: frequencies whose wavelength exceeds the original context are divided by `factor`, short ones are kept, and
    those between are interpolated (transformers, `rope_type: llama3`). Linear: all are divided by `rope_factor`. YaRN
    and LongRoPE: each is divided by its own. With `local`, the frequencies of local layers, which are not scaled.
    """
    rotated = spec.rotary_dim or spec.head_dim
    exponents = jnp.arange(0, rotated, 2, dtype=jnp.float32) / rotated
    if local and spec.local_rope_theta:
        return 1.0 / (spec.local_rope_theta**exponents)
    frequency = 1.0 / (spec.rope_theta**exponents)
    if spec.rope_factor != 1.0:
        frequency = frequency / spec.rope_factor
    if spec.rope_divisors:
        frequency = frequency / jnp.asarray(spec.rope_divisors, jnp.float32)
    scaling = spec.rope_scaling
    if scaling is None:
        return frequency
    wavelength = 2 * math.pi / frequency
    smooth = (scaling.original_max_position / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    smooth = jnp.clip(smooth, 0.0, 1.0)
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency


def rope_tables(positions: Int[Array, "..."], spec: DecoderSpec, local: bool = False) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, `positions.shape + (1, C/2)` in float32: the 1 is for heads. `local`: see rope_frequencies."""
    angles = positions[..., None].astype(jnp.float32) * jnp.expand_dims(
        rope_frequencies(spec, local), tuple(range(positions.ndim))
    )
    magnitude = 1.0 if local and spec.local_rope_theta else spec.rope_magnitude
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    return (cos, sin) if magnitude == 1.0 else (cos * magnitude, sin * magnitude)


def apply_rope(
    x: jax.Array, tables: tuple[jax.Array, jax.Array], scale: float = 1.0, interleaved: bool = False
) -> jax.Array:
    """Rotate the halves of each head (the convention of Llama's released weights): (a, b) -> (a c - b s, b c + a s).

    Where the tables are narrower than half a head, the channels behind are left as they are. With `interleaved`, the
    even and the odd channels are rotated, and the result holds the even ones first: in queries and keys alike, which
    changes no score. The result is multiplied by `scale` before it is rounded to the type of `x`.
    """
    cos, sin = tables
    width = 2 * cos.shape[-1]
    wide, rest = widened(x[..., :width]), widened(x[..., width:])
    first, second = (wide[..., ::2], wide[..., 1::2]) if interleaved else jnp.split(wide, 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
    if scale != 1.0:
        rotated = rotated * scale
    return rotated.astype(x.dtype)
