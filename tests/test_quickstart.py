"""A work directory of the quickstart belongs to one seed and size, and keeps the settings it was begun with."""

import pytest

from pbrl_jax import with_values
from pbrl_jax.config.serialize import from_json, to_json
from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.paths import work_dir, write_atomic
from pbrl_jax.quickstart.main import begun_config
from pbrl_jax.quickstart.settings import quickstart_config, tiny_quickstart_config


def test_a_quickstart_goes_on_with_the_settings_it_was_begun_with(tmp_path, capsys):
    work, config = work_dir(str(tmp_path)), tiny_quickstart_config(3)
    older = with_values(config, optim={"learning_rate": 1e-3}, train={"max_steps": 6})
    assert begun_config(work, config) == config and from_json(work.config.read_text(), type(config)) == config
    assert capsys.readouterr().out == ""
    write_atomic(work.config, to_json(older))
    assert begun_config(work, config) == older and from_json(work.config.read_text(), type(config)) == older
    assert "begun with" in (said := capsys.readouterr().out) and "optim.learning_rate" in said
    with pytest.raises(CheckpointError, match="train.seed: saved 3, now 4"):
        begun_config(work, tiny_quickstart_config(4))
    with pytest.raises(CheckpointError, match="policy.preset"):
        begun_config(work, quickstart_config(3))
