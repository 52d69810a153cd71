"""Everything a training run consists of, assembled before the first step."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pbrl_jax.config.tree import Config
from pbrl_jax.core.batching import pad_prompts
from pbrl_jax.core.paths import WorkDir
from pbrl_jax.core.records import Prompt, PromptBatch, on_host
from pbrl_jax.data.batches import Sampler
from pbrl_jax.mesh.rows import held_rows, rows_on_mesh
from pbrl_jax.rewards.inputs import PivotVectors
from pbrl_jax.rewards.tokens import PivotBatch, TokenTables
from pbrl_jax.text.languages import LANGUAGES
from pbrl_jax.text.token_languages import marker_tokens
from pbrl_jax.weights.encoders import Encoder
from pbrl_jax.weights.policies import Policy


class Experiment(NamedTuple):
    """The parts of a run; nothing in here changes while it runs.

    `prompt_tokens` and `pivot_rows` map a prompt's id to its tokens and to its row in `pivots`.
    """

    config: Config
    work: WorkDir
    mesh: Mesh
    policy: Policy
    encoder: Encoder
    sampler: Sampler
    prompt_tokens: Mapping[int, Sequence[int]]
    pivot_rows: Mapping[int, int]
    pivots: PivotVectors
    token_table: Mapping[str, np.ndarray] | None
    fingerprints: Mapping[str, str]


def device_prompts(experiment: Experiment, prompts: Sequence[Prompt]) -> PromptBatch:
    """The prompts as a batch on the mesh, leading axis over all devices that hold rows; each host puts its own."""
    held = [prompts[row] for row in held_rows(experiment.mesh, len(prompts))]
    batch = pad_prompts(
        [experiment.prompt_tokens[p.id] for p in held],
        experiment.config.rollout.max_prompt_length,
        [p.id for p in held],
        experiment.policy.tokenizer.pad_id,
    )
    return rows_on_mesh(batch, experiment.mesh, len(prompts))


def pivot_vectors(experiment: Experiment, prompts: Sequence[Prompt], samples: int = 1) -> PivotVectors:
    """The references' vectors of `samples` rows per prompt, on the host."""
    rows = np.repeat([experiment.pivot_rows[p.id] for p in prompts], samples)
    return experiment.pivots.rows(rows)


def device_pivots(experiment: Experiment, prompts: Sequence[Prompt]) -> PivotBatch:
    """The references' vectors and the language numbers of a batch, for the fused step."""
    held = [prompts[row] for row in held_rows(experiment.mesh, len(prompts))]
    vectors = pivot_vectors(experiment, held)
    order = table_languages(experiment)
    batch = on_host(PivotBatch, *vectors, np.array([order.index(p.language) for p in held], np.int32))
    return rows_on_mesh(batch, experiment.mesh, len(prompts))


def table_languages(experiment: Experiment) -> list[str]:
    """Languages of the token tables, in row order."""
    return sorted({p.language for p in (*experiment.sampler.target, *experiment.sampler.english)})


def token_tables(experiment: Experiment) -> TokenTables:
    """The device tables of the fused step."""
    order = table_languages(experiment)
    tokenizer = experiment.policy.tokenizer
    everything = np.ones(tokenizer.vocab_size, bool)
    table = experiment.token_table or {}
    markers = {language: LANGUAGES[language].answer_phrase.split("{")[0].strip() for language in order}
    return TokenTables(
        allowed_LV=jnp.asarray(np.stack([table.get(language, everything) for language in order])),
        marker_LM=jnp.asarray(marker_tokens(tokenizer, markers)),
        eos_ids=jnp.asarray(tokenizer.eos_ids, jnp.int32),
    )
