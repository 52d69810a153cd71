"""The same numbers by hand: for GPUs that are not here, for sweeps, and to check the compiled ones against.

Products are counted as the programs make them: attention over whole rectangles (masked scores are computed too), and
again where a checkpointed function is computed twice. Memory and traffic are estimates.
"""

from typing import NamedTuple

from pbrl_jax.core.config import Config
from pbrl_jax.models.attention import AUTO_CHUNK_PAIRS, QUERY_CHUNK
from pbrl_jax.models.specs import DecoderEncoderSpec, DecoderSpec, TextEncoderSpec
from pbrl_jax.plan.hlo import Cost
from pbrl_jax.plan.programs import Need, reward_calls
from pbrl_jax.plan.shapes import Models
from pbrl_jax.rollout.generate import windows


class Sizes(NamedTuple):
    """Sizes of the mesh."""

    data: int
    fsdp: int
    tensor: int

    @property
    def row_shards(self) -> int:
        return self.data * self.fsdp

    @property
    def weight_shards(self) -> int:
        return self.fsdp * self.tensor

    @property
    def chips(self) -> int:
        return self.data * self.fsdp * self.tensor


def layer_weights(spec: DecoderSpec) -> int:
    """Weights of a layer that a token is multiplied with."""
    heads = spec.head_dim * (2 * spec.heads + 2 * spec.kv_heads)
    fed = 3 * spec.ffn * (spec.experts_per_token or 1) + spec.experts
    return spec.width * (heads + fed)


def parameter_count(spec: DecoderSpec) -> int:
    """All parameters but the norms' and biases'."""
    heads = spec.head_dim * (2 * spec.heads + 2 * spec.kv_heads)
    layer = spec.width * (heads + 3 * spec.ffn * (spec.experts or 1) + spec.experts)
    return spec.layers * layer + spec.vocab_size * spec.width * (1 if spec.tied_embeddings else 2)


def encoder_weights(spec: TextEncoderSpec) -> tuple[int, int]:
    """(weights that a token is multiplied with, all parameters) of an encoder."""
    if isinstance(spec, DecoderEncoderSpec):
        return spec.decoder.layers * layer_weights(spec.decoder), parameter_count(spec.decoder)
    layers = spec.layers * (4 * spec.width**2 + 2 * spec.width * spec.ffn)
    return layers, layers + spec.width * (spec.vocab_size + spec.max_positions)


def attention_flops(spec: DecoderSpec, pairs: float) -> float:
    """Scores and weighted values of (query, key) pairs in all layers."""
    return 4.0 * spec.heads * spec.head_dim * spec.layers * pairs


def generate_flops(config: Config, spec: DecoderSpec) -> float:
    """The rollout at full length, on all chips together."""
    P, G, T, R = _axes(config)
    products = 2.0 * spec.layers * layer_weights(spec)
    head = 2.0 * spec.width * spec.vocab_size
    flops = P * T * products + attention_flops(spec, P * T * T) + P * head
    filled = 1
    for window in windows(R):
        tokens = P * G * (window - filled)
        flops += tokens * (products + head) + attention_flops(spec, tokens * (T + window))
        filled = window
    return flops


def _times(config: Config, queries: int, keys: int) -> int:
    """How often an attention is computed for one update: forward, twice backward, and again for each checkpoint."""
    chunked = config.policy.attention == "chunked" or queries * keys > AUTO_CHUNK_PAIRS
    return 3 + (config.policy.remat != "none") + chunked


def update_flops(config: Config, spec: DecoderSpec) -> float:
    """One update on unpacked responses of full length, on all chips together."""
    P, G, T, R = _axes(config)
    products = 2.0 * spec.layers * layer_weights(spec) * P * (T + G * R)
    head = 2.0 * spec.width * spec.vocab_size * P * G * R
    attentions = [(T, T, P * T * T), (G * R, T, P * G * R * T), (R, R, P * G * R * R)]
    forward = products + head + sum(attention_flops(spec, pairs) for _, _, pairs in attentions)
    flops = products * (3 + (config.policy.remat == "full")) + 4 * head
    flops += sum(_times(config, queries, keys) * attention_flops(spec, pairs) for queries, keys, pairs in attentions)
    return flops + (forward if config.algo.beta > 0 else 0)


def reward_flops(config: Config, spec: TextEncoderSpec) -> float:
    """The encoder on all responses."""
    calls, block, size = reward_calls(config, config.train.prompts_per_step * config.algo.num_generations)
    inner = spec.decoder if isinstance(spec, DecoderEncoderSpec) else spec
    width = inner.heads * inner.head_dim if isinstance(inner, DecoderSpec) else inner.width
    return calls * block * size * (2.0 * encoder_weights(spec)[0] + 4.0 * width * size * inner.layers)


def _axes(config: Config) -> tuple[int, int, int, int]:
    rollout = config.rollout
    return (
        config.train.prompts_per_step, config.algo.num_generations, rollout.max_prompt_length,
        rollout.max_completion_length,
    )  # fmt: skip


def resident(config: Config, models: Models, mesh: Sizes) -> float:
    """Float32 parameters, two moments, a reference where there is a KL term, and the encoder, on one chip."""
    weights = parameter_count(models.policy) / mesh.weight_shards
    return weights * (12 + 4 * (config.algo.beta > 0)) + 4.0 * encoder_weights(models.encoder)[1]


def _item(spec) -> int:
    return 2 if spec.dtype == "bfloat16" else 4


def generate_estimate(config: Config, models: Models, mesh: Sizes) -> Need:
    spec, (P, G, T, R) = models.policy, _axes(config)
    rows = P * G / mesh.row_shards
    position = 2.0 * spec.layers * spec.kv_heads * spec.head_dim * _item(spec) / mesh.tensor
    cache = position * (rows * R + P / mesh.row_shards * T)
    layer = 2.0 * layer_weights(spec) * _item(spec) / mesh.tensor
    temporary = cache + 3 * rows * spec.vocab_size / mesh.tensor * 4 + layer
    whole = parameter_count(spec) / mesh.tensor
    # For few rows the compiler leaves weights where they lie and exchanges the rows' activations instead.
    widths = 2 * spec.width + (spec.heads + 2 * spec.kv_heads) * spec.head_dim + 3 * spec.ffn
    exchanged = P * G / mesh.data * spec.layers * widths * _item(spec) / mesh.tensor
    gathered = min(4.0 * whole, exchanged) * (mesh.fsdp - 1) / mesh.fsdp
    sums = 4.0 * spec.layers * rows * spec.width * _item(spec) * (mesh.tensor - 1) / mesh.tensor
    read = whole * (4 + 2 * _item(spec)) if 4.0 * whole < exchanged else 4.0 * whole / mesh.fsdp
    moved = R * (read + position * (P / mesh.row_shards * T * G + rows * R / 2))
    cost = Cost(generate_flops(config, spec) / mesh.chips, moved, {"all-gather": R * gathered, "all-reduce": R * sums})
    return Need(resident(config, models, mesh) + temporary, temporary, cost)


def reward_estimate(config: Config, models: Models, mesh: Sizes) -> Need:
    rows = config.train.prompts_per_step * config.algo.num_generations
    calls, block, size = reward_calls(config, rows)
    spec = models.encoder
    inner = spec.decoder if isinstance(spec, DecoderEncoderSpec) else spec
    activations = block * size * (2.0 * inner.ffn + 6 * inner.width) * _item(spec)
    scores = block * inner.heads * min(size, 512) * size * 4.0
    temporary = activations + scores
    moved = calls * (4.0 * encoder_weights(spec)[1] + 4 * inner.layers * (activations + scores))
    return Need(resident(config, models, mesh) + temporary, temporary, Cost(reward_flops(config, spec), moved))


def update_estimate(config: Config, models: Models, mesh: Sizes) -> Need:
    spec, (P, G, T, R) = models.policy, _axes(config)
    size = min(config.train.microbatch_prompts or P, P)
    groups = max(1.0, size / mesh.row_shards)
    tokens, item = groups * (T + G * R), _item(spec)
    inside = (2.0 * spec.ffn / mesh.tensor + 6 * spec.width) * item
    kept = {"full": spec.width * item, "dots": inside / 1.5, "none": inside * 1.5}[config.policy.remat]
    scores = groups * spec.heads / mesh.tensor * min(G * R, QUERY_CHUNK * G) * max(R, T) * 4.0 * 2
    chunk = max(1.0, config.train.logprob_chunk / size) * groups * spec.vocab_size / mesh.tensor * 4.0 * 3
    weights = parameter_count(spec)
    own = 4.0 * weights / mesh.weight_shards
    layer = layer_weights(spec) * (4.0 + item) / mesh.tensor * 2
    gradients = own * (2 if size < P else 1)
    temporary = tokens * (kept * spec.layers + 3 * inside) + scores + chunk + gradients + layer
    temporary += 2.0 * spec.vocab_size * spec.width * 4 / mesh.tensor
    count = P / size
    passes = 2 + (config.policy.remat == "full") + (config.algo.beta > 0)
    gathered = 4.0 * weights / mesh.tensor * (mesh.fsdp - 1) / mesh.fsdp * (passes + 1)
    reduced = 8.0 * weights / mesh.weight_shards * (mesh.data - 1) / mesh.data
    sums = 4.0 * passes * spec.layers * tokens * spec.width * item * (mesh.tensor - 1) / mesh.tensor
    flops = update_flops(config, spec) / mesh.chips
    moved = count * (weights / mesh.tensor * 8 * passes + tokens * spec.layers * passes * inside * 3) + own * 8
    collectives = {"all-gather": count * gathered, "all-reduce": count * (sums + reduced)}
    times = config.algo.num_iterations
    return Need(
        resident(config, models, mesh) + temporary, temporary, Cost().plus(Cost(flops, moved, collectives), times)
    )


ESTIMATES = {"generate": generate_estimate, "reward": reward_estimate, "update": update_estimate}


def estimate_step(config: Config, models: Models, mesh: Sizes) -> dict[str, Need]:
    """What each program of the step needs, worked out by hand."""
    return {name: estimate(config, models, mesh) for name, estimate in ESTIMATES.items()}
