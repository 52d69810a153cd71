"""`pbrl dpo CONFIG --workdir W`: learn from pairs of the policy's own responses, ranked by the semantic reward, or from
pairs of a file."""

import contextlib
import dataclasses
import hashlib

import jax

from pbrl_jax.algos.preference import preferred_pairs
from pbrl_jax.config.older import stable_repr
from pbrl_jax.config.serialize import to_json
from pbrl_jax.config.tree import Config, DpoConfig
from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import WorkDir, write_atomic
from pbrl_jax.data.responses import Preference, holds_preferences, read_preferences
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.run.assemble import build_experiment, policy_for_rows
from pbrl_jax.run.check_verb import begin
from pbrl_jax.run.scored import ScoredGroup, read_groups, scored_groups
from pbrl_jax.text.prompts import form_of, format_prompts, response_end, with_one_bos
from pbrl_jax.text.tokenizers import Tokenizer
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.preferences import dpo_optimizer_config, make_dpo_step
from pbrl_jax.train.sft import SftBatch, mixed_rows, pad_sft
from pbrl_jax.train.staged import Stage, run_stage
from pbrl_jax.train.start import merged_params, start_params, taken
from pbrl_jax.train.state import place_state
from pbrl_jax.weights.policies import Policy, let_go, save_policy

Pair = tuple[list[int], list[int], list[int]]
"""Tokens of a prompt, of the chosen and of the rejected response."""


def preference_pairs(groups: list[ScoredGroup], config: Config, policy: Policy) -> list[Pair]:
    """The pairs of all groups as tokens; those that are too long are left out and counted.

    Raises:
      DataError: no group has two responses whose rewards differ enough.
    """
    prompts = format_prompts(
        [g.question for g in groups], [g.language for g in groups], policy.tokenizer, **form_of(config.data)
    )
    pairs: list[Pair] = []
    for group, prompt in zip(groups, prompts, strict=True):
        for better, worse in preferred_pairs(group.rewards, pairs=config.dpo.pairs, min_margin=config.dpo.min_margin):
            pairs.append((prompt, group.tokens[better], group.tokens[worse]))
    fit = pairs_that_fit(pairs, config)
    print(f"{len(groups)} groups give {len(fit)} pairs ({config.dpo.pairs}); {len(pairs) - len(fit)} are too long.")
    if not fit:
        raise DataError(
            f"None of {len(groups)} groups has two responses whose rewards differ by dpo.min_margin="
            f"{config.dpo.min_margin}. Lower it, or raise dpo.prompts or rollout.temperature."
        )
    return fit


def refuse_other_tokens(groups: list[ScoredGroup], tokenizer: Tokenizer, path: str) -> None:
    """Raise DataError for responses that another tokenizer sampled: as this one's, their tokens are another text."""

    def says(ids: list[int], text: str) -> bool:
        with contextlib.suppress(IndexError, OverflowError, TypeError):  # an id beyond the vocabulary
            return tokenizer.decode(ids[:-1] if ids and ids[-1] in tokenizer.eos_ids else ids) == text
        return False

    for number, group in enumerate(groups, start=1):
        for ids, text in zip(group.tokens, group.completions, strict=True):
            if not says(ids, text):
                raise DataError(
                    f"{path}, line {number}: the tokens of {text[:60]!r} are not those of this policy's tokenizer: "
                    "another policy has sampled them. Leave --dpo.path empty to sample from this one."
                )


def pairs_that_fit(pairs: list[Pair], config: Config) -> list[Pair]:
    """Those within the lengths of prompts and of completions."""
    limits = config.rollout.max_prompt_length, *(config.rollout.max_completion_length,) * 2
    return [pair for pair in pairs if all(len(x) <= limit for x, limit in zip(pair, limits, strict=True))]


def stored_pairs(rows: list[Preference], config: Config, tokenizer: Tokenizer) -> list[Pair]:
    """The pairs of a file as tokens; those that are too long are left out and counted.

    Raises:
      DataError: none fits.
    """
    asked = [row for row in rows if not row.verbatim]
    prompts = format_prompts(
        [row.question for row in asked], [row.language for row in asked], tokenizer, **form_of(config.data)
    )
    end = response_end(tokenizer, config.data.prompt_style)
    chosen, rejected = (
        [[*ids, *end] for ids in tokenizer.encode_batch(texts)]
        for texts in ([row.chosen for row in asked], [row.rejected for row in asked])
    )
    formed = zip(prompts, chosen, rejected, strict=True)
    pairs = [verbatim_pair(row, tokenizer) if row.verbatim else next(formed) for row in rows]
    fit = pairs_that_fit(pairs, config)
    print(f"{config.dpo.path} gives {len(fit)} pairs; {len(pairs) - len(fit)} are too long.")
    if not fit:
        sizes = " + ".join(str(len(ids)) for ids in pairs[0])
        raise DataError(
            f"None of the {len(pairs)} pairs of {config.dpo.path} fits; the first has {sizes} tokens. Raise "
            "rollout.max_prompt_length and rollout.max_completion_length."
        )
    return fit


def verbatim_pair(row: Preference, tokenizer: Tokenizer) -> Pair:
    """The tokens of a pair whose texts begin with the prompt: each response's are those behind it in the whole text."""
    start = str(row.question)
    prompt = tokenizer.encode(start.rstrip(" "))

    def response(text: str) -> list[int]:
        whole = tokenizer.encode(start + text)
        ids = whole[len(prompt) :] if whole[: len(prompt)] == prompt else tokenizer.encode(text)
        return [*ids, *tokenizer.eos_ids[:1]]

    return with_one_bos(prompt, tokenizer.bos_id), response(row.chosen), response(row.rejected)


def train_preferences(config: Config, work: WorkDir, policy: Policy, mesh, pairs: list[Pair], part=None) -> Policy:
    """The policy after dpo.steps; resumes from the work directory.

    Raises:
      Interrupted: a stop was requested; the state is saved.
    """
    sizes, counts = {"pairs": len(pairs)}, {"pairs": config.dpo.batch_size}
    lengths = config.rollout.max_prompt_length, config.rollout.max_completion_length
    params, axes, _ = taken(policy, config, keeps=True)
    state = place_state(params, make_optimizer(dpo_optimizer_config(config.dpo)), axes, mesh)
    step = make_dpo_step(policy.spec, config.dpo, config.train.logprob_chunk, config.lora)
    frozen = start_params(policy, config, mesh)
    del params
    let_go(policy)

    def batch_at(index: int) -> SftBatch:
        rows = [pairs[i] for _, i in mixed_rows(sizes, counts, config.train.seed, index)]
        batch = pad_sft([p for p, _, _ in rows for _ in range(2)], [r for _, *two in rows for r in two], *lengths)
        one_each = jax.tree.map(lambda x: x[::2], batch.prompts)
        return SftBatch(one_each, batch.tokens_BR, batch.lengths_B)

    def fingerprint(dpo: DpoConfig) -> str:
        settings = f"{stable_repr(dpo, 'DpoConfig')}, {stable_repr(config.lora, 'LoraConfig')}"
        identity = f"({pairs!r}, {settings}, {policy.fingerprint!r}, {lengths!r}, {config.train.seed!r})"
        return hashlib.sha256(identity.encode()).hexdigest()

    own, earlier = fingerprint(dataclasses.replace(config.dpo, path="")), fingerprint(config.dpo)
    stage = Stage("dpo", config.dpo.steps, 200, own, part, config.guard.max_skipped_updates, earlier)
    state = run_stage(stage, work, mesh, state, step, batch_at, frozen)
    return policy._replace(params=merged_params(state.params, frozen, config.lora), fingerprint=stage.fingerprint)


def main(config: Config, workdir: str) -> None:
    """Sample and rank responses (or read them), train, and leave the policy in W/policy."""
    work = begin("dpo", config, workdir)
    if config.dpo.path and holds_preferences(config.dpo.path, config.data.split):
        rows = read_preferences(config.dpo.path, config.data.split, config.data.languages)
        policy, mesh = policy_for_rows(config, work), make_mesh(config.mesh)
        pairs = stored_pairs(rows, config, policy.tokenizer)
    else:
        given = read_groups(config.dpo.path) if config.dpo.path else None  # before any model is loaded
        experiment = build_experiment(config, work)
        groups = scored_groups(experiment, config.dpo.prompts) if given is None else given
        if given is not None:
            refuse_other_tokens(given, experiment.policy.tokenizer, config.dpo.path)
        pairs = preference_pairs(groups, config, experiment.policy)
        policy, mesh = experiment.policy, experiment.mesh
        del experiment  # the reward's encoder is not needed any more
    trained = train_preferences(config, work, policy, mesh, pairs)
    save_policy(trained, str(work.root / "policy"))
    write_atomic(work.config, to_json(config))
    print(f"Policy: {work.root / 'policy'}. Evaluate it with pbrl eval --policy {work.root}, or go on from it.")
