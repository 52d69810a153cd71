"""What a verb refuses before it loads anything; `--dry-run` asks the same."""

import jax
from jax.sharding import AbstractMesh

from pbrl_jax.config.supervised import STAGES
from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import WorkDir, as_path, is_remote, work_dir
from pbrl_jax.data.sources.table import names_a_file
from pbrl_jax.mesh.rows import check_rows
from pbrl_jax.mesh.sharding import MESH_AXES, mesh_shape
from pbrl_jax.rewards.combine import check_reward
from pbrl_jax.run.assemble import check_start, use_compilation_cache
from pbrl_jax.run.check import refuse_muon
from pbrl_jax.run.contamination import check_names
from pbrl_jax.text.languages import check_languages
from pbrl_jax.train.signals import watch_signals


def check_verb(verb: str, config: Config, device_count: int | None = None) -> None:
    """Refuse a configuration that `pbrl VERB` cannot run (ConfigError).

    Args:
      device_count: devices of this host; default: those that are there.
    """
    if verb in ("audit", "calibrate"):  # they train nothing: the settings of a training do not matter
        check_languages(config.data.languages)
        check_reward(config.reward)
        return
    count = jax.device_count() if device_count is None else device_count
    sampled = {"train": True, "sft": config.sft.source == "samples", "dpo": not config.dpo.path}
    check_start(config, count, samples=sampled.get(verb, False))
    if verb == "train":
        check_names(config)
    if verb == "sft":
        _check_sft(config)
    if verb in STAGES:
        settings = getattr(config, STAGES[verb])
        packed = getattr(settings, "packed", False)  # streams are filled up to whole microbatches
        rows = 0 if packed else settings.batch_size
        if rows or settings.microbatch_size:
            shards = AbstractMesh(mesh_shape(config.mesh, count), MESH_AXES)
            check_rows(STAGES[verb], rows, settings.microbatch_size, shards)


def begin(verb: str, config: Config, workdir: str) -> WorkDir:
    """The work directory of a verb that a signal stops between two saves, once `check_verb` lets it run."""
    watch_signals()
    use_compilation_cache(config)
    check_verb(verb, config)
    return work_dir(workdir)


def _check_sft(config: Config) -> None:
    """An optimizer that would not act, and a source without what it reads."""
    sft = config.sft
    refuse_muon(config, "sft.optimizer", sft.optimizer)
    local = names_a_file(sft.path) and not is_remote(sft.path)
    if sft.source == "file" and (not sft.path or (local and not as_path(sft.path).exists())):
        raise ConfigError(f"sft.source file reads sft.path, which is {sft.path!r}. Name a JSON lines file.")
    if sft.source == "translated" and not sft.translator:
        raise ConfigError(
            "sft.source translated needs a translator. Use --sft.translator facebook/nllb-200-distilled-600M, or a "
            "policy that translates when it is asked to."
        )
