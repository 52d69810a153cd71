"""Analytic estimates: for GPUs that cannot be compiled for here, for sweeps, and as a check of compiled programs.

FLOPs are counted as the programs compute them: masked scores of attention are included, and a checkpointed function
counts twice. Memory and traffic are rougher estimates.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from pbrl_jax.config.tree import Config
from pbrl_jax.models.attention import AUTO_CHUNK_PAIRS, QUERY_CHUNK
from pbrl_jax.models.fused_attention import FUSED, SPLASH_BLOCK, SPLASH_LANES, splash_pairs
from pbrl_jax.models.logprobs import chunk_positions
from pbrl_jax.models.lora import projections
from pbrl_jax.models.slots import BLOCK, slot_positions
from pbrl_jax.models.specs import DecoderEncoderSpec, DecoderSpec, TextEncoderSpec
from pbrl_jax.plan.hlo import Cost
from pbrl_jax.plan.programs import Need, reward_calls, run_here
from pbrl_jax.plan.shapes import Models
from pbrl_jax.rollout.weights import TENSOR
from pbrl_jax.train.programs import updates_per_rollout
from pbrl_jax.train.start import keeps_start, narrows_frozen

#: Bytes that a pass of unfused attention moves for each pair and head: scores in float32, weights in the compute type.
SCORE_BYTES = 14.0


class Sizes(NamedTuple):
    """Sizes of the mesh's axes, and of a slice or box."""

    data: int
    fsdp: int
    tensor: int
    #: Devices that reach each other without the network; 0: all.
    box: int = 0

    @property
    def axes(self) -> dict[str, int]:
        """Axis -> size, as the configuration has them."""
        return {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}

    @property
    def row_shards(self) -> int:
        return self.data * self.fsdp

    @property
    def weight_shards(self) -> int:
        return self.fsdp * self.tensor

    @property
    def chips(self) -> int:
        return self.data * self.fsdp * self.tensor

    def network(self, sent: Mapping[str, float]) -> float:
        """Bytes that pass a device's link to other slices or boxes, of those that it sends along axes (axis -> bytes;
        `rows`: data and fsdp). A ring leaves a box once for all of its members there, which share their links."""
        strides = {"data": self.fsdp * self.tensor, "fsdp": self.tensor, "tensor": 1, "rows": self.tensor}
        sizes, total = self.axes | {"rows": self.row_shards}, 0.0
        for axis, size in sent.items():
            inside = max(1, min(sizes[axis], self.box // strides[axis]))
            total += size / inside if self.box and sizes[axis] > inside else 0.0
        return total


def _layer(spec: DecoderSpec, experts: int) -> int:
    """Matrices of a layer with so many experts, or with a feed-forward where the policy has none."""
    heads = spec.head_dim * (2 * spec.heads + 2 * spec.kv_heads)
    return spec.width * (heads + (2 + spec.gated) * spec.ffn * (experts if spec.experts else 1) + spec.experts)


def layer_weights(spec: DecoderSpec) -> int:
    """Weights of a layer that take part in the product of one token."""
    return _layer(spec, spec.experts_per_token)


def parameter_count(spec: DecoderSpec) -> int:
    """Number of parameters, norms and biases excluded."""
    return spec.layers * _layer(spec, spec.experts) + _tables(spec)


def encoder_weights(spec: TextEncoderSpec) -> tuple[int, int]:
    """(weights that take part in the product of one token, all parameters) of an encoder."""
    if isinstance(spec, DecoderEncoderSpec):
        return spec.decoder.layers * layer_weights(spec.decoder), parameter_count(spec.decoder)
    layers = spec.layers * (4 * spec.width**2 + (2 + spec.gated) * spec.width * spec.ffn)
    return layers, layers + spec.width * (spec.vocab_size + (0 if spec.rope_theta else spec.max_positions))


def attention_flops(spec: DecoderSpec, pairs: float) -> float:
    """FLOPs of scores and weighted values of (query, key) pairs in all layers."""
    return 4.0 * spec.heads * spec.head_dim * spec.layers * pairs


def generate_flops(config: Config, spec: DecoderSpec) -> float:
    """FLOPs of a rollout at full length, summed over all chips."""
    P, G, T, R = _axes(config)
    products = 2.0 * (spec.layers * layer_weights(spec) + adapter_count(config, spec))
    head = 2.0 * spec.width * spec.vocab_size
    flops = P * T * products + attention_flops(spec, P * T * T) + P * head
    return flops + P * G * ((R - 1) * (products + head) + attention_flops(spec, read_positions(T, R)))


def read_positions(T: int, R: int) -> int:
    """Positions of the cache that R tokens behind T read, the first of which is sampled with the prompt."""
    if slot_positions(T + R) <= BLOCK:
        return (R - 1) * (T + R)
    return sum(((T + token) // BLOCK + 1) * BLOCK for token in range(R - 1))


def slots_of(config: Config) -> int:
    """Rows that decode at a time, on all chips."""
    rows = config.train.prompts_per_step * config.algo.num_generations
    return min(config.rollout.slots or rows, rows)


class Attention(NamedTuple):
    """A part of the update's attention on one prompt group: (query, key) pairs of a head that are computed, the mean of
    the layers; passes over them, forward ones and those of the gradient, in units of a forward one; and bytes that a
    pass moves for each pair and head."""

    pairs: float
    forward: float
    backward: float
    pair_bytes: float


def attention_parts(config: Config, spec: DecoderSpec) -> list[Attention]:
    """The attention of prompts and of responses: by a fused kernel where the spec names one (see
    `roofline.on_topology`), whose scores are never in memory, or with scores written."""
    _, G, T, R = _parts(config)
    again = config.policy.remat != "none"
    if spec.attention in FUSED:
        whole = spec.attention == "cudnn"  # whose queries are those of the prompt, too
        windows = [spec.window if local else None for local in spec.local_layers()]
        counted = {
            window: (splash_pairs(T, T, window), G * splash_pairs(R + T * whole, T + R, window))
            for window in set(windows)
        }  # fmt: skip
        means = [sum(counted[window][part] for window in windows) / spec.layers for part in (0, 1)]
        read_again = 2.0 * spec.head_dim * _item(spec) / SPLASH_BLOCK
        return [Attention(pairs, 1 + again, 2.5 if whole else 3.5, read_again) for pairs in means]
    parts = []
    for queries, keys, pairs in [(T, T, T * T), (G * R, T, G * R * T), (R, R, G * R * R)]:
        chunked = config.policy.attention == "chunked" or queries * keys > AUTO_CHUNK_PAIRS
        parts.append(Attention(pairs, 1 + again + chunked, 2, SCORE_BYTES))
    return parts


def update_flops(config: Config, spec: DecoderSpec) -> float:
    """FLOPs of one update on unpacked responses of full length, summed over all chips."""
    P, G, T, R = _parts(config)
    products = 2.0 * spec.layers * layer_weights(spec) * P * (T + G * R)
    beside = 2.0 * adapter_count(config, spec) * P * (T + G * R)
    head = 2.0 * spec.width * spec.vocab_size * P * G * R
    own = 0 if config.lora.rank else 1  # products for the gradient of the weights
    attention = attention_parts(config, spec)
    forward = products + head + sum(attention_flops(spec, P * part.pairs) for part in attention)
    again = int(config.policy.remat == "full")
    flops = products * (2 + own + again) + beside * (3 + again) + (3 + own) * head
    flops += sum((part.forward + part.backward) * attention_flops(spec, P * part.pairs) for part in attention)
    return flops + (forward if config.algo.beta > 0 else 0)


def layer_traffic(config: Config, spec: DecoderSpec, mesh: Sizes, groups: float) -> float:
    """Bytes that one layer of an update moves on a chip for a microbatch of so many prompt groups there: activations,
    in passes over arrays as wide as the residual stream, as the heads and as the feed-forward; attention beyond that;
    the layer's matrices, gathered, read and with their gradient."""
    _, G, T, R = _parts(config)
    item, reference, again = _item(spec), int(config.algo.beta > 0), int(config.policy.remat == "full")
    heads = (spec.heads + spec.kv_heads) * spec.head_dim
    narrow, fed = 20 * spec.width + 12 * heads, 4 * spec.ffn * (spec.experts_per_token or 1)
    forward = narrow + fed
    passed = forward * (1 + reference) + again * (narrow + fed / 2) + 1.6 * narrow + 3.25 * fed
    moved = groups * (T + G * R) * item * passed / mesh.tensor
    for part in attention_parts(config, spec):
        times = part.forward + reference + (2 if spec.attention in FUSED else part.backward)
        moved += groups * spec.heads / mesh.tensor * part.pairs * times * part.pair_bytes
    return moved + layer_weights(spec) / mesh.tensor * item * (2 * (2 + again + reference) + 3)


def head_traffic(config: Config, spec: DecoderSpec, mesh: Sizes, groups: float) -> float:
    """Bytes that the output matrix and the logits of a microbatch move on a chip."""
    _, G, _, R = _parts(config)
    asked = chunk_positions(config.train.logprob_chunk, spec.vocab_size, mesh.row_shards, mesh.tensor)
    chunks = max(1.0, groups * G * R / (asked / mesh.row_shards))
    matrix, forward = spec.vocab_size * spec.width / mesh.tensor, 2 + (config.algo.beta > 0)
    logits = 4.0 * groups * G * R * spec.vocab_size / mesh.tensor
    gradient = 8 if not config.lora.rank else 0
    return chunks * matrix * (_item(spec) * (forward + 1) + gradient) + logits * (forward + 9)


def reward_flops(config: Config, spec: TextEncoderSpec, chips: int = 1) -> float:
    """FLOPs of the encoder on all responses, summed over all chips."""
    calls, block, size = reward_calls(config, config.train.prompts_per_step * config.algo.num_generations, chips)
    inner = spec.decoder if isinstance(spec, DecoderEncoderSpec) else spec
    width = inner.heads * inner.head_dim if isinstance(inner, DecoderSpec) else inner.width
    return calls * block * size * (2.0 * encoder_weights(spec)[0] + 4.0 * width * size * inner.layers)


def _axes(config: Config) -> tuple[int, int, int, int]:
    rollout = config.rollout
    return (
        config.train.prompts_per_step, config.algo.num_generations, rollout.max_prompt_length,
        rollout.max_completion_length,
    )  # fmt: skip


def _parts(config: Config) -> tuple[int, int, int, int]:
    """`_axes` of one update, which may be on a minibatch, and split groups into parts."""
    P, G, T, R = _axes(config)
    P = config.algo.minibatch_prompts or P
    part = config.train.microbatch_samples or G
    return P * G // part, part, T, R


def adapter_count(config: Config, spec: DecoderSpec) -> int:
    """Number of adapter parameters."""
    if not config.lora.rank:
        return 0
    sizes = {
        "width": spec.width, "ffn": spec.ffn, "heads": spec.heads * spec.head_dim,
        "kv_heads": spec.kv_heads * spec.head_dim, "none": 1,
    }  # fmt: skip
    ends = projections(spec, config.lora.targets).values()
    sides = sum(math.prod(sizes[axis] for axis in side) for both in ends for side in both)
    return spec.layers * config.lora.rank * sides


def _tables(spec: DecoderSpec) -> int:
    """Number of parameters of the embedding and the output matrix, which are never quantised."""
    return spec.vocab_size * spec.width * (1 if spec.tied_embeddings else 2)


def start_bytes(config: Config, spec: DecoderSpec) -> float:
    """Bytes of the start policy's parameters as they are kept frozen."""
    item = jnp.dtype(spec.dtype).itemsize if narrows_frozen(spec, config) else 4.0
    everything = parameter_count(spec)
    kernels = spec.layers * (_layer(spec, 0) - spec.width * spec.experts)  # experts are not quantised
    per_weight = {"none": item, "int8": 1.0, "int4": 0.5, "nf4": 0.5}[config.lora.quantization]
    scale = 0.0 if config.lora.quantization == "none" else item / config.lora.tile_size
    return item * (everything - kernels) + kernels * (per_weight + scale)


def state_bytes(config: Config, models: Models, mesh: Sizes) -> tuple[float, float, float]:
    """Bytes of (trained parameters, moments, start policy) per chip, in device or host memory."""
    spec, muon = models.policy, config.optim.optimizer == "muon" and not config.lora.rank
    trained = 4.0 * (adapter_count(config, spec) or parameter_count(spec)) / mesh.weight_shards
    # Muon has one moment of a matrix.
    single = 4.0 * spec.layers * (_layer(spec, spec.experts) - spec.width * spec.experts) / mesh.weight_shards
    start = start_bytes(config, spec) / mesh.weight_shards if keeps_start(config) else 0.0
    return trained, 2 * trained - single * muon, start


def save_bytes(config: Config, models: Models, mesh: Sizes, chips_per_host: int) -> float:
    """Bytes of a host's memory that a save takes while it is written, at most: parameters and moments of its chips."""
    trained, moments, _ = state_bytes(config, models, mesh)
    return (trained + moments) * min(chips_per_host, mesh.weight_shards)


def resident(config: Config, models: Models, mesh: Sizes) -> float:
    """Bytes of state, start policy and the reward's models in the memory of one chip."""
    trained, moments, start = state_bytes(config, models, mesh)
    moments = 0.0 if "optimizer" in config.train.offload else moments
    start = 0.0 if "reference" in config.train.offload else start
    own = _item(models.encoder) * encoder_weights(models.encoder)[1] + models.reward_bytes
    return trained + moments + start + own


def _item(spec) -> int:
    return 2 if spec.dtype == "bfloat16" else 4


def sampled_bytes(config: Config, spec: DecoderSpec) -> tuple[float, float]:
    """Bytes of a weight of the layers, and of a key or value of one head, in what samples."""
    item = float(_item(spec))
    kernel = 1.0 if config.rollout.weight_dtype == "int8" else item
    vector = spec.head_dim + 4.0 if config.rollout.kv_dtype == "int8" else spec.head_dim * item
    return kernel, vector


def generate_estimate(config: Config, models: Models, mesh: Sizes) -> Need:
    spec, (P, G, T, R) = models.policy, _axes(config)
    rows = math.ceil(slots_of(config) / mesh.row_shards)
    steps = R * P * G / slots_of(config)
    kernel, vector = sampled_bytes(config, spec)
    position = 2.0 * spec.layers * spec.kv_heads * vector / mesh.tensor
    # The slots, the prompts whose rows wait for one, and a tenth to spare.
    cache = 1.1 * position * (rows * slot_positions(T + R) + math.ceil(rows / G) * T)
    layer = 2.0 * layer_weights(spec) * _item(spec) / mesh.tensor
    temporary = cache + 3 * rows * spec.vocab_size / mesh.tensor * 4 + layer
    total = parameter_count(spec) / mesh.tensor
    sums = 4.0 * spec.layers * rows * spec.width * _item(spec) * (mesh.tensor - 1) / mesh.tensor
    attended = position * rows * read_positions(T, R) / R
    laid = config.rollout.weights != "as_trained" and (mesh.fsdp > 1 or _item(spec) < 4) or kernel < _item(spec)
    if laid or mesh.fsdp == 1:
        shares = mesh.fsdp if config.rollout.weights in TENSOR else 1
        tables = _tables(spec) / mesh.tensor
        read = (kernel * (total - tables) + _item(spec) * tables) / shares
        copy = read if config.lora.quantization == "none" else _item(spec) * tables / shares
        moved = steps * (read + attended) + laid * (copy + 4.0 * total / mesh.fsdp)
        sent = {"all-gather": copy * (mesh.fsdp - 1) / mesh.fsdp, "all-reduce": steps * sums}
        if shares > 1:
            # Activations of the rows along fsdp: gathered for two products, exchanged for queries, keys and values,
            # and added up behind two products; logits of each row come back.
            heads = (2 * spec.heads + 2 * spec.kv_heads) * spec.head_dim / shares
            widths = spec.layers * (2.0 * spec.width + heads + 4 * spec.width) * _item(spec)
            logits = spec.vocab_size * 4.0 / shares
            exchanged = rows * (shares - 1) * (widths + logits) / mesh.tensor
            sent = {"all-gather": steps * exchanged, "all-reduce": steps * sums}
        cost = _decoding_cost(config, spec, mesh, moved, sent)
        return Need(resident(config, models, mesh) + temporary + laid * copy, temporary, cost)
    # For few rows the compiler keeps weights sharded and communicates activations instead.
    widths = 2 * spec.width + (spec.heads + 2 * spec.kv_heads) * spec.head_dim + 3 * spec.ffn
    exchanged = slots_of(config) / mesh.data * spec.layers * widths * _item(spec) / mesh.tensor
    gathered = min(4.0 * total, exchanged) * (mesh.fsdp - 1) / mesh.fsdp
    read = total * (4 + 2 * _item(spec)) if 4.0 * total < exchanged else 4.0 * total / mesh.fsdp
    moved = steps * (read + attended)
    sent = {"all-gather": steps * gathered, "all-reduce": steps * sums}
    cost = _decoding_cost(config, spec, mesh, moved, sent)
    return Need(resident(config, models, mesh) + temporary, temporary, cost)


def _decoding_cost(config: Config, spec: DecoderSpec, mesh: Sizes, moved: float, sent: Mapping[str, float]) -> Cost:
    """Of a rollout, whose weights or activations are gathered along fsdp and summed along tensor."""
    network = mesh.network({"fsdp": sent["all-gather"], "tensor": sent["all-reduce"]})
    return Cost(generate_flops(config, spec) / mesh.chips, moved, sent, network_bytes=network)


def reward_estimate(config: Config, models: Models, mesh: Sizes) -> Need:
    rows = config.train.prompts_per_step * config.algo.num_generations
    calls, block, size = reward_calls(config, rows, mesh.chips)
    spec, texts = models.encoder, block / mesh.chips
    inner = spec.decoder if isinstance(spec, DecoderEncoderSpec) else spec
    activations = texts * size * (2.0 * inner.ffn + 6 * inner.width) * _item(spec)
    scores = texts * inner.heads * min(size, 512) * size * 4.0
    # The hidden states, and either the scores of a layer or the inside of its feed-forward.
    states = texts * size * 2.0 * inner.width * _item(spec)
    temporary = states + max(activations - states, scores)
    moved = calls * (_item(spec) * encoder_weights(spec)[1] + 4 * inner.layers * (activations + scores))
    flops = reward_flops(config, spec, mesh.chips) / mesh.chips
    return Need(resident(config, models, mesh) + temporary, temporary, Cost(flops, moved))


def update_estimate(config: Config, models: Models, mesh: Sizes) -> Need:
    spec, (P, G, T, R) = models.policy, _parts(config)
    size = min(config.train.microbatch_prompts or P, P)
    groups = max(1.0, size / mesh.row_shards)
    tokens, item = groups * (T + G * R), _item(spec)
    inside = (2.0 * spec.ffn / mesh.tensor + 6 * spec.width) * item
    kept = {"full": spec.width * item, "dots": inside / 1.5, "none": inside * 1.5}[config.policy.remat]
    scores = groups * spec.heads / mesh.tensor * min(G * R, QUERY_CHUNK * G) * max(R, T) * 4.0 * 2
    if spec.attention in FUSED:
        scores = groups * spec.heads / mesh.tensor * G * R * SPLASH_LANES * 4.0 * 2  # log-denominators, in every lane
    positions = chunk_positions(config.train.logprob_chunk, spec.vocab_size, mesh.row_shards, mesh.tensor)
    chunk = max(1.0, positions / size) * groups * spec.vocab_size / mesh.tensor * 4.0 * 3
    weights = parameter_count(spec)
    own, moments, start = state_bytes(config, models, mesh)
    layer = layer_weights(spec) * (4.0 + item) / mesh.tensor * 2
    gradients = own * (2 if size < P else 1)
    shared = mesh.tensor if (T + G * R) % mesh.tensor == 0 else 1  # hidden states between layers
    temporary = tokens * (kept / shared * spec.layers + 3 * inside) + scores + chunk + layer
    head = item + 4.0 * (config.lora.rank == 0)  # a copy in the compute type, and its gradient
    temporary += head * spec.vocab_size * spec.width / mesh.tensor
    offload = config.train.offload
    fetched = moments * ("optimizer" in offload)
    temporary = max(temporary, start * ("reference" in offload)) + gradients
    host = 2 * fetched + start * ("reference" in offload)
    count = P / size
    passes = 2 + (config.policy.remat == "full") + (config.algo.beta > 0)
    gathered = item * weights / mesh.tensor * (mesh.fsdp - 1) / mesh.fsdp * (passes - 1)
    reduced = 2.0 * own * (mesh.data - 1) / mesh.data  # once a step; see mesh.microbatches.data_sums
    reduced *= count if mesh.fsdp > 1 and mesh.tensor > 1 else 1
    sums = 4.0 * passes * spec.layers * tokens * spec.width * item * (mesh.tensor - 1) / mesh.tensor
    flops = update_flops(config, spec) / mesh.chips
    moved = spec.layers * layer_traffic(config, spec, mesh, groups) + head_traffic(config, spec, mesh, groups)
    moved = count * (moved + 6 * own * (count > 1)) + own * 10
    scattered = count * float(item) * weights / mesh.tensor * (mesh.fsdp - 1) / mesh.fsdp * (config.lora.rank == 0)
    collectives = {"all-gather": count * gathered, "all-reduce": count * sums + reduced, "reduce-scatter": scattered}
    network = mesh.network({"fsdp": count * gathered + scattered, "tensor": count * sums, "data": reduced})
    cost = Cost(flops, moved, collectives, host_bytes=host, network_bytes=network)
    held = resident(config, models, mesh) + fetched
    return Need(held + temporary, temporary, Cost().plus(cost, updates_per_rollout(config)))


ESTIMATES = {"generate": generate_estimate, "reward": reward_estimate, "update": update_estimate}


def estimate_step(config: Config, models: Models, mesh: Sizes) -> dict[str, Need]:
    """Memory and cost of each program of the step, estimated."""
    return {name: estimate(config, models, mesh) for name, estimate in run_here(config, ESTIMATES).items()}
