"""Low-rank adapters (Hu et al., 2021, arXiv 2106.09685) beside frozen, possibly quantised kernels (QLoRA).

Adapters are a separate tree, {"layers": {"query": {"lora_a", "lora_b"}, ...}}, which is trained, saved and sharded.
Joined with the frozen parameters they form the tree of the forward pass (models.layers.Projection adds their product),
so every algorithm trains adapters as it trains weights, and the frozen tree alone is the reference.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pbrl_jax.config.tree import LoraConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.trees import flat_paths, nested
from pbrl_jax.models.precision import widened
from pbrl_jax.models.quantized import dequantized, is_quantized, quantized, with_scales
from pbrl_jax.models.specs import DecoderSpec

#: All weights are trained.
NO_ADAPTERS = LoraConfig()

#: Projection -> (number of input axes, logical axes of its inputs, of its outputs).
ATTENTION = {
    "query": (("width",), ("heads", "none")),
    "key": (("width",), ("kv_heads", "none")),
    "value": (("width",), ("kv_heads", "none")),
    "out": (("heads", "none"), ("width",)),
}
FEED_FORWARD = {"gate": (("width",), ("ffn",)), "up": (("width",), ("ffn",)), "down": (("ffn",), ("width",))}


def projections(spec: DecoderSpec, targets: tuple[str, ...]) -> dict[tuple[str, ...], tuple]:
    """(path under `layers`) -> (axes of inputs, of outputs) of the projections with these names.

    Raises:
      ConfigError: a feed-forward of experts, which has no single projection.
    """
    experts = [name for name in targets if name in FEED_FORWARD] if spec.experts else []
    if experts:
        raise ConfigError(
            f"lora.targets names {', '.join(experts)}, but this policy's feed-forward is made of experts, which have "
            "no adapters here. Use --lora.targets query key value out."
        )
    found = {(name,): axes for name, axes in ATTENTION.items() if name in targets}
    fed = {name: axes for name, axes in FEED_FORWARD.items() if name in targets and (spec.gated or name != "gate")}
    return found | {("mlp", name): axes for name, axes in fed.items()}


def adapter_axes(spec: DecoderSpec, lora: LoraConfig) -> tuple:
    """(path pattern, logical axes) of the adapters, as `decoder_axes` of the parameters."""
    lines: list[tuple[str, tuple[str, ...]]] = []
    for path, (inputs, outputs) in projections(spec, lora.targets).items():
        name = "/".join(("layers", *path))
        lines.append((f"{name}/lora_a", ("layers", *inputs, "none")))
        lines.append((f"{name}/lora_b", ("layers", "none", *outputs)))
    return tuple(lines)


def init_adapters(key: jax.Array, params: Any, spec: DecoderSpec, lora: LoraConfig) -> Any:
    """New adapters for these parameters (or their shapes): normal `lora_a`, zero `lora_b`; their product is zero.

    `lora_a` is [layers, inputs..., rank], `lora_b` [layers, rank, outputs...], in float32.
    """
    tree: dict = {}
    for number, (path, (inputs, _)) in enumerate(projections(spec, lora.targets).items()):
        branch, leaf = params["layers"], tree.setdefault("layers", {})
        for name in path:
            branch, leaf = branch[name], leaf.setdefault(name, {})
        shape, cut = branch["kernel"].shape, 1 + len(inputs)
        fan_in = functools.reduce(lambda a, b: a * b, shape[1:cut])
        noise = jax.random.normal(jax.random.fold_in(key, number), (*shape[:cut], lora.rank), jnp.float32)
        leaf["lora_a"] = noise * fan_in**-0.5
        leaf["lora_b"] = jnp.zeros((shape[0], lora.rank, *shape[cut:]), jnp.float32)
    return tree


def join_adapters(frozen: Any, adapters: Any, lora: LoraConfig) -> Any:
    """The parameters of a forward pass: frozen ones with the adapters beside their kernels, scaled by alpha / rank."""

    def join(base: Any, other: Any) -> Any:
        if "lora_a" in other:
            return {**base, "lora_a": other["lora_a"], "lora_b": other["lora_b"] * (lora.alpha / lora.rank)}
        return {**base, **{name: join(base[name], part) for name, part in other.items()}}

    return join(frozen, adapters)


def merge_adapters(frozen: Any, adapters: Any, lora: LoraConfig) -> Any:
    """Parameters without adapters that compute the same: kernel + alpha / rank * a @ b.

    A quantised kernel is dequantised first: the result equals what was trained, not the weights before quantisation.
    All parameters are float32 or wider, also where the frozen ones are not.
    """

    def merge(branch: Any) -> Any:
        if not isinstance(branch, dict):
            return widened(branch)
        if "kernel" not in branch:
            return {name: merge(part) for name, part in branch.items()}
        kernel = branch["kernel"]
        kernel = widened(dequantized(kernel) if is_quantized(kernel) else kernel)
        if "lora_a" in branch:
            low, high = branch["lora_a"], branch["lora_b"]
            low, high = low.reshape(len(low), -1, low.shape[-1]), high.reshape(*high.shape[:2], -1)
            product = jnp.einsum("nir,nro->nio", low, high)
            kernel = (kernel + product.reshape(kernel.shape)).astype(kernel.dtype)
        rest = {name: widened(part) for name, part in branch.items() if not name.startswith(("kernel", "lora_"))}
        return {**rest, "kernel": kernel}

    return merge(join_adapters(frozen, adapters, lora))


def frozen_params(params: Any, spec: DecoderSpec, lora: LoraConfig, scales: Any = None) -> Any:
    """The frozen parameters beside adapters: unchanged, or with the kernels of all projections quantised.

    Args:
      scales: type of the scales; None: that of the parameters.

    Raises:
      ConfigError: lora.quantization without qwix.
    """
    if lora.quantization == "none":
        return params
    names = (*ATTENTION, *(() if spec.experts else FEED_FORWARD))
    flat = flat_paths(params)
    for path, (inputs, _) in projections(spec, names).items():
        kernel = "/".join(("layers", *path, "kernel"))
        made = quantized(flat[kernel], len(inputs), lora.quantization, lora.tile_size)
        flat[kernel] = made if scales is None else with_scales(made, scales)
    return nested(flat)
