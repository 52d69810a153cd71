"""`pbrl train CONFIG --workdir W`: train, or continue where W was left."""

from pbrl_jax.config.tree import Config
from pbrl_jax.mesh.agree import in_turn
from pbrl_jax.run.assemble import build_experiment, make_evaluate
from pbrl_jax.run.check_verb import begin
from pbrl_jax.run.contamination import check_training
from pbrl_jax.run.decoding import with_decoding
from pbrl_jax.run.several import assembled, save_from_first
from pbrl_jax.train.loop import train, trained_policy


def main(config: Config, workdir: str) -> None:
    """Assemble the run, look for the test in its text where asked, train it to train.max_steps, and leave the policy
    in W/policy."""
    work = begin("train", config, workdir)
    experiment = with_decoding(assembled(lambda: build_experiment(config, work), work))
    prompts = (*experiment.sampler.target, *experiment.sampler.english)
    prints = {name: experiment.fingerprints[name] for name in ("dataset", "pivots")}
    in_turn("contamination", lambda: check_training(config, work, prompts, prints))
    position = train(experiment, make_evaluate(experiment.config, experiment.policy, prompts))
    if position is not None:
        save_from_first(trained_policy(experiment, position), str(work.root / "policy"))
        print(f"Finished step {position.step}. Parameters: {work.root / 'policy'}; numbers: {work.final}.")
