"""`pbrl pivots CONFIG --workdir W`: write, filter and embed the English references of a run, once."""

from pbrl_jax.config.tree import Config
from pbrl_jax.logs.progress import Progress
from pbrl_jax.pivots.store import open_store
from pbrl_jax.pivots.write import attach_references
from pbrl_jax.run.assemble import reference_expert, run_encoder, run_policy, training_prompts
from pbrl_jax.run.check_verb import begin
from pbrl_jax.run.embedding import reference_vectors


def main(config: Config, workdir: str) -> None:
    """Fill the pivot store; a second call, and `pbrl train`, find everything there."""
    work = begin("pivots", config, workdir)
    prompts = training_prompts(config)
    policy = run_policy(config, work, prompts)
    store = open_store(config.pivot, work.root)
    prompts, report = attach_references(prompts, config, store, progress=Progress, **reference_expert(policy, config))
    print(report.describe())
    vectors = reference_vectors(prompts, run_encoder(config, policy.tokenizer), store)
    print(f"{len(vectors.has_B)} prompts have references and vectors of width {vectors.whole_BE.shape[1]}.")
