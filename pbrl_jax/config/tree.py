"""One frozen tree of settings per experiment.

Experiments are Python files with `get_config() -> Config`; the command line overrides single fields
(`--algo.beta 0.02`). Names are TRL's where TRL has one. Each field is *identity* (defines the experiment; a change is
refused at resume) or *operational* (cadence, mesh, paths; free to change). Lengths are in tokens, durations in
optimizer steps, shares in [0, 1]. Values that the paper does not state are marked ASSUMED.

The sections here hold the settings of every run. Settings of a single algorithm, loss or reward are in its own file, in
a subclass of the section; `run.settings` combines them into the `Config` that users import from `pbrl_jax`.
"""

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

from pbrl_jax.config.algo import AlgoConfig
from pbrl_jax.config.data import DataConfig
from pbrl_jax.config.encoder import EncoderConfig
from pbrl_jax.config.endpoint import EndpointConfig
from pbrl_jax.config.eval import EvalConfig
from pbrl_jax.config.guard import GuardConfig
from pbrl_jax.config.log import LogConfig
from pbrl_jax.config.mesh import MeshConfig
from pbrl_jax.config.optim import OptimConfig
from pbrl_jax.config.pivot import PivotConfig
from pbrl_jax.config.policy import PolicyConfig
from pbrl_jax.config.reward import RewardConfig
from pbrl_jax.config.rollout import RolloutConfig
from pbrl_jax.config.supervised import (
    ContrastiveConfig,
    DpoConfig,
    LoraConfig,
    SftConfig,
    TranslatorTrainingConfig,
)
from pbrl_jax.config.train import TrainConfig


@dataclass(frozen=True)
class Config:
    """All settings of an experiment."""

    policy: PolicyConfig = PolicyConfig()
    pivot: PivotConfig = PivotConfig()
    encoder: EncoderConfig = EncoderConfig()
    reward: RewardConfig = RewardConfig()
    algo: AlgoConfig = AlgoConfig()
    rollout: RolloutConfig = RolloutConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()
    lora: LoraConfig = LoraConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()
    translator: TranslatorTrainingConfig = TranslatorTrainingConfig()
    mesh: MeshConfig = MeshConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    guard: GuardConfig = GuardConfig()
    endpoint: EndpointConfig = EndpointConfig()


AnyConfig = TypeVar("AnyConfig", bound=Config)


def with_values(config: AnyConfig, **sections: dict) -> AnyConfig:
    """`with_values(config, algo={"beta": 0.0}, train={"seed": 1})`: a copy with single fields replaced."""
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), **values) for name, values in sections.items()}
    )
