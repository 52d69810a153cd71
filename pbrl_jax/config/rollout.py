"""Settings of sampling; `config.tree` holds the whole tree."""

from dataclasses import dataclass
from typing import Literal

from pbrl_jax.config.fields import identity, operational


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled."""

    max_prompt_length: int = identity(64, at_least=1)
    """Longest prompt, in tokens; a longer one is an error at load, or dropped (`data.overlong_prompts`)."""
    max_completion_length: int = identity(64, at_least=1)
    """Longest response, in tokens."""
    temperature: float = identity(1.0, at_least=0)
    """Sampling temperature; log-probs are those of the tempered distribution."""
    top_p: float = identity(1.0, at_least=1e-06, at_most=1)
    """Probability mass of nucleus sampling; 1: off."""
    top_k: int = identity(0, at_least=0)
    """Number of most likely tokens that are sampled from; 0: off."""
    engine: Literal["jax", "vllm"] = identity("jax")
    """What samples: jax, the compiled programs of this package, or vllm, a server that is sent the weights after each
    update. Its tokens are not the same again after a resume; the correction of the sampler is on."""
    vllm_address: str = operational("http://localhost:8000", only_with=("engine", "vllm"))
    """Where the vLLM server is, without a path. A key is read from the environment variable VLLM_API_KEY."""
    vllm_folder: str = operational("/dev/shm", only_with=("engine", "vllm"))
    """Folder that this process writes weights to and the server reads them from: memory shared by both where they are
    on one machine, a shared disk otherwise."""
    vllm_timeout: float = operational(600.0, above=0, only_with=("engine", "vllm"))
    """Seconds to wait for a server that does not respond, or in which no group of responses is finished; then the run
    saves and stops."""
    weights: Literal["auto", "whole", "tensor", "as_trained"] = operational("auto")
    """Sharding of the policy's matrices during decoding: auto (whole or tensor, whichever is faster by the plan; what
    was chosen is saved with the run and used again), whole (in the compute type, gathered over mesh.fsdp once a
    rollout), tensor (tensor-parallel over mesh.fsdp too: each device reads its part alone, and activations are
    exchanged) or as_trained (sharded as in training: less memory, but gathered at every token)."""
    weight_dtype: Literal["model", "int8"] = identity("model", only_with=("engine", "jax"))
    """Type of the projections' matrices while sampling: model (policy.dtype) or int8, with a step for each output. With
    int8 here or below, log-probs are those of what samples, and the correction of the sampler is on; evaluation reads
    the policy as it is."""
    kv_dtype: Literal["model", "int8"] = identity("model", only_with=("engine", "jax"))
    """Type of cached keys and values while sampling: model (policy.dtype) or int8, with a step for each of them."""
    slots: int = operational(0, at_least=0, only_with=("engine", "jax"))
    """Rows that decode at a time, on all devices; when one ends, the next takes its place. 0: all, or as many as have
    room in memory; what was chosen is saved with the run and used again. A fused step decodes all its rows together."""
    segment_length: int = operational(128, at_least=1, at_most=128)
    """Tokens decoded between two checks for signals and early exit; at most 128."""

    @property
    def differs(self) -> bool:
        """Whether what samples computes other log-probs than the trainer does in the same type."""
        return self.engine != "jax" or "int8" in (self.weight_dtype, self.kv_dtype)
