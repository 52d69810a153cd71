"""`pbrl pivots CONFIG --workdir W`: write, filter and embed the English references of a run, once."""

from pbrl_jax.config.tree import Config
from pbrl_jax.core.paths import work_dir
from pbrl_jax.logs.progress import Progress
from pbrl_jax.pivots.store import open_store
from pbrl_jax.pivots.write import attach_references
from pbrl_jax.run.assemble import (
    check_start,
    reference_expert,
    run_encoder,
    run_policy,
    training_prompts,
    use_compilation_cache,
)
from pbrl_jax.run.embedding import reference_vectors
from pbrl_jax.train.signals import watch_signals


def main(config: Config, workdir: str) -> None:
    """Fill the pivot store; a second call, and `pbrl train`, find everything there."""
    watch_signals()
    use_compilation_cache(config)
    check_start(config, samples=False)
    work = work_dir(workdir)
    prompts = training_prompts(config)
    policy = run_policy(config, work, prompts)
    store = open_store(config.pivot, work.root)
    prompts, report = attach_references(prompts, config, store, progress=Progress, **reference_expert(policy, config))
    print(report.describe())
    vectors = reference_vectors(prompts, run_encoder(config, policy.tokenizer), store)
    print(f"{len(vectors.has_B)} prompts have references and vectors of width {vectors.whole_BE.shape[1]}.")
