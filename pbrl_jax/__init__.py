"""pbrl_jax: a multilingual policy, trained by reinforcement against English pivot references.

The names a user imports. Functions are pure and can be traced by `jax.jit`, except the ones that read or write text
and files. Shapes are in the axis letters of `pbrl_jax.core.records`; errors are subclasses of `PbrlError`.

Models (weights, spec and tokenizer together):

  load_policy(directory, mesh=None, dtype=None, param_dtype='float32') -> Policy(spec, params, tokenizer, fingerprint)
  Policy.logits(params, tokens_BT, mask_BT) -> float32 [B, T, V]
  save_policy(policy, directory)
  export_policy(policy, directory, dtype=None): a Hugging Face folder
  load_encoder(directory, max_length=None, prefix='', *, prompt='', pooling=None, dtype=None) -> Encoder
  Encoder.embed(texts) -> unit vectors [N, E]
  save_encoder(encoder, directory)
  export_encoder(encoder, directory): a sentence-transformers folder
  load_comet(directory, dtype=None, transform=None) -> Comet
  Comet.score(src, mt, ref=None) -> scores [N]
  convert_comet(directory, out, dtype=None) -> Comet
  load_translator(source, *, mesh=None, dtype=None, num_beams=1, batch_size=32, **limits) -> Translator
  Translator.translate(texts, source_language, target_language) -> list of strings

Text:

  load_tokenizer(source) -> Tokenizer
  format_prompts(questions, codes, tokenizer, style='plain', thinking=None, wording=Wording()) -> lists of token ids
  extract_answer(text, code, *, fallback=False) -> str | None
  split_response(text, code) -> (reasoning, answer)
  same_answer(answer, gold) -> bool
  identify_language(text, languages=None) -> str | None
  is_right_language(text, language, languages, share=0.8) -> bool | None

Rollout:

  pad_prompts(token_lists, length, row_ids, pad_id=0) -> PromptBatch
  sampling_params(temperature, top_p, top_k, eos_ids) -> SamplingParams
  step_key(seed, step) -> key
  generate(policy_params, prompts, key, sampling, *, spec, config, algo=AlgoConfig()) -> Rollout
  completions(rollout, tokenizer) -> list of B strings

Rewards:

  cosine_reward(encoder_params, tokens_BS, mask_BS, pivot_BE, *, spec) -> reward_B
  make_reward(config, assets, group=1) -> function(RewardInputs) -> Combined(total, each, right_language_B,
    translation_B)
  PivotStore(directory, writes=True): English references and their vectors on disk

Algorithm and update:

  group_advantages(reward_PG, valid_PG, *, scale, epsilon, leave_one_out=False, floor=0.0) -> adv_PG
  policy_loss(logp_BR, old_logp_BR, adv_B, mask_BR, *, config, ref_logp_BR=None, max_completion_length=None,
              count_masked_rows=False, weight_BR=None, entropy_BR=None, beta=None) -> (sum, count, metrics)
  make_optimizer(config) -> optax.GradientTransformation
  new_state(params, optimizer, beta=None, critic=None) -> TrainState
  make_update(spec, config) -> compiled (state, ref_params, batch, base=None, bucket=None) -> (state, metrics)
  make_fused_step(spec, encoder_spec, config) -> compiled (state, ref_params, encoder_params, prompts, pivots, tables,
              sampling, key) -> (state, metrics, rollout, rewards)

Runs:

  run_training(config=None, *, workdir, rows=None, eval_rows=None, reward_functions=(), **sections) -> TrainingRun
    (folder, step, finished, metrics, history)

Configuration:

  Config: one frozen tree of settings; its sections are PolicyConfig, PivotConfig, EncoderConfig, RewardConfig,
    AlgoConfig, RolloutConfig, DataConfig, OptimConfig, TrainConfig, SftConfig, DpoConfig, LoraConfig,
    ContrastiveConfig, MeshConfig, EvalConfig, LogConfig, GuardConfig, EndpointConfig
  with_values(config, **sections) -> Config
  validate(config, device_count, samples=True)

Each name is imported on first use: `import pbrl_jax` alone loads neither JAX nor a tokenizer.
"""

import importlib

from pbrl_jax.core.version import __version__ as __version__

#: Public name -> the module it lives in.
NAMES = {
    "AlgoConfig": "run.settings",
    "CheckpointError": "core.errors",
    "Comet": "weights.comets",
    "Config": "run.settings",
    "ConfigError": "core.errors",
    "ContrastiveConfig": "config.supervised",
    "DataConfig": "config.data",
    "DataError": "core.errors",
    "DecoderSpec": "models.specs",
    "DpoConfig": "config.supervised",
    "Encoder": "weights.encoders",
    "EncoderConfig": "config.encoder",
    "EncoderSpec": "models.specs",
    "EndpointConfig": "config.endpoint",
    "EvalConfig": "config.eval",
    "GuardConfig": "config.guard",
    "LogConfig": "config.log",
    "LoraConfig": "config.supervised",
    "MeshConfig": "config.mesh",
    "OptimConfig": "config.optim",
    "PbrlError": "core.errors",
    "PivotBatch": "rewards.tokens",
    "PivotConfig": "config.pivot",
    "PivotStore": "pivots.store",
    "PivotVectors": "rewards.inputs",
    "Policy": "weights.policies",
    "PolicyConfig": "config.policy",
    "Prompt": "core.records",
    "PromptBatch": "core.records",
    "Reference": "core.records",
    "RewardAssets": "rewards.combine",
    "RewardConfig": "run.settings",
    "RewardError": "core.errors",
    "RewardInputs": "rewards.inputs",
    "Rollout": "core.records",
    "RolloutConfig": "config.rollout",
    "SamplingParams": "core.records",
    "Scores": "core.records",
    "SftConfig": "config.supervised",
    "TokenTables": "rewards.tokens",
    "TrainBatch": "core.records",
    "TrainConfig": "config.train",
    "TrainState": "core.records",
    "TrainingRun": "run.library",
    "Wording": "text.wording",
    "completions": "rollout.decode",
    "convert_comet": "weights.comets",
    "cosine_reward": "rewards.cosine",
    "export_encoder": "weights.encoder_export",
    "export_policy": "weights.hf_export",
    "extract_answer": "text.answers",
    "format_prompts": "text.prompts",
    "generate": "rollout.generate",
    "group_advantages": "algos.advantages",
    "identify_language": "text.langid",
    "is_right_language": "text.langid",
    "load_comet": "weights.comets",
    "load_encoder": "weights.encoders",
    "load_policy": "weights.policies",
    "load_tokenizer": "text.tokenizers",
    "load_translator": "translate.load",
    "make_fused_step": "train.fused",
    "make_optimizer": "train.optimizer",
    "make_reward": "rewards.combine",
    "make_update": "train.programs",
    "new_state": "train.state",
    "pad_prompts": "core.batching",
    "policy_loss": "algos.grpo",
    "run_training": "run.library",
    "same_answer": "text.equality",
    "sampling_params": "rollout.sampling",
    "save_encoder": "weights.encoders",
    "save_policy": "weights.policies",
    "split_response": "text.answers",
    "step_key": "rollout.sampling",
    "validate": "run.check",
    "with_values": "config.tree",
}

__all__ = list(NAMES)


def __getattr__(name: str):
    """A public name, imported from its module when it is first asked for."""
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{NAMES[name]}"), name)
    if NAMES[name] != "run.settings":  # made anew where a table of algorithms or rewards has grown
        globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *NAMES})
