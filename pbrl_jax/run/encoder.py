"""`pbrl encoder CONFIG --workdir W`: a multilingual encoder by contrastive training on parallel text."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pbrl_jax.config.older import stable_values
from pbrl_jax.config.serialize import to_json
from pbrl_jax.config.tree import Config
from pbrl_jax.core.paths import WorkDir, write_atomic
from pbrl_jax.data.contrastive import Pair, prompt_pairs, quickstart_pairs
from pbrl_jax.data.corpus import encode_corpus
from pbrl_jax.mesh.sharding import make_mesh, row_shards
from pbrl_jax.models.encoder import encoder_axes
from pbrl_jax.run.assemble import run_encoder, run_policy, training_prompts
from pbrl_jax.run.check_verb import begin
from pbrl_jax.train.contrastive import ContrastiveBatch, contrastive_optimizer_config, make_contrastive_step
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.staged import Stage, run_stage
from pbrl_jax.train.state import place_state
from pbrl_jax.weights.encoders import Encoder, save_encoder


def all_pairs(config: Config, prompts) -> list[list[Pair]]:
    """The parallel text of every step, a pure function of the configuration."""
    settings, seed = config.contrastive, config.train.seed
    common = {"batch_size": settings.batch_size, "seed": seed, "negatives": settings.hard_negatives}
    if config.data.source == "quickstart":
        return [
            quickstart_pairs(config.data.languages, step, space=config.data.path, **common)
            for step in range(settings.steps)
        ]
    return [prompt_pairs(prompts, step, **common) for step in range(settings.steps)]


class EncodedSteps:
    """All steps' texts as one array, encoded in bulk (tensorflow-text) and sliced per step. `groups`: parts that the
    devices and microbatches make of a batch."""

    def __init__(self, steps: list[list[Pair]], encoder: Encoder, groups: int = 1):
        texts: list[str] = []
        self.ranges: list[list[tuple[int, int]]] = []
        for pairs in steps:
            columns = [[p.text for p in pairs], [p.target for p in pairs], [n for p in pairs for n in p.negatives]]
            self.ranges.append([])
            for column in columns:
                self.ranges[-1].append((len(texts), len(texts) + len(column)))
                texts += [encoder.prefix + text for text in column]
        self.encoded = encode_corpus(texts, encoder.tokenizer, encoder.max_length)
        if cut := int(self.encoded.cut_N.sum()):
            print(f"{cut} of {len(texts)} texts are longer than encoder.max_length={encoder.max_length} tokens: what "
                  "stands behind that is not learnt.")  # fmt: skip
        longest = int(self.encoded.lengths_N.max())
        self.width = min(encoder.max_length, -(-longest // 8) * 8)
        most = max(end - start for *_, (start, end) in self.ranges)
        self.most_negatives = -(-most // groups) * groups

    def batch(self, step: int) -> ContrastiveBatch:
        """The arrays of one step, of one shape for all steps; missing negatives are rows without a real token."""
        source, target, negative = (self._slice(*bounds) for bounds in self.ranges[step])
        missing = self.most_negatives - len(negative[0])
        negative = tuple(np.pad(part, ((0, missing), (0, 0))) for part in negative)
        return ContrastiveBatch(*(jnp.asarray(x) for part in (source, target, negative) for x in part))

    def _slice(self, start: int, end: int):
        tokens = self.encoded.tokens_NS[start:end, : self.width]
        return tokens, np.arange(self.width)[None] < self.encoded.lengths_N[start:end, None]


def in_float32(params: Any) -> Any:
    """Parameters in the type that they are trained in: bfloat16 loses updates of less than 1/256 of a weight."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)


def train_encoder(config: Config, work: WorkDir, encoder: Encoder, prompts, mesh: Mesh, part=None) -> Encoder:
    """The encoder after contrastive.steps, its parameters in float32; resumes from the work directory. The training
    takes the parameters' arrays: those of `encoder` in float32 are deleted.

    Raises:
      Interrupted: a stop was requested; the state is saved.
    """
    settings = config.contrastive
    groups = row_shards(mesh) * (settings.batch_size // (settings.microbatch_size or settings.batch_size))
    steps = EncodedSteps(all_pairs(config, prompts), encoder, groups)
    optimizer = make_optimizer(contrastive_optimizer_config(settings))
    params, kind = in_float32(encoder.params), jax.tree.leaves(encoder.params)[0].dtype
    state = place_state(params, optimizer, encoder_axes(encoder.spec), mesh, donate=True)
    text = hashlib.sha256(steps.encoded.tokens_NS.tobytes()).hexdigest()
    identity = repr((stable_values(settings, "ContrastiveConfig"), encoder.key, config.train.seed, text))
    identity += "" if kind == jnp.float32 else f" from {kind}"
    stage = Stage(
        "encoder", settings.steps, 200, hashlib.sha256(identity.encode()).hexdigest(), part,
        config.guard.max_skipped_updates,
    )  # fmt: skip
    state = run_stage(stage, work, mesh, state, make_contrastive_step(encoder.spec, settings), steps.batch)
    return encoder._replace(params=state.params, fingerprint=stage.fingerprint)


def main(config: Config, workdir: str) -> None:
    """Train the encoder and leave it in W/encoder."""
    work = begin("encoder", config, workdir)
    prompts = training_prompts(config)
    encoder = run_encoder(config, run_policy(config, work, prompts).tokenizer)
    trained = train_encoder(config, work, encoder, prompts, make_mesh(config.mesh))
    save_encoder(trained, str(work.root / "encoder"))
    write_atomic(work.config, to_json(config))
    print(f"Encoder: {work.root / 'encoder'}. Use it with --encoder.source {work.root}.")
