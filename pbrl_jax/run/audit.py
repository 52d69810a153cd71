"""`pbrl audit CONFIG --workdir W`: can this reward be cheated? Writes W/audit.json and W/audit.png."""

import dataclasses
import json
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from pbrl_jax.config.fields import settings_of
from pbrl_jax.config.tree import Config, with_values
from pbrl_jax.core.errors import ConfigError, DataError, RewardError, installed
from pbrl_jax.core.paths import WorkDir, as_path, read_json_lines, work_dir, write_atomic, write_json_lines
from pbrl_jax.core.records import Prompt
from pbrl_jax.data.load import fit_prompts, load_prompts
from pbrl_jax.eval.attacks import ATTACKS, Case, phrase_notes
from pbrl_jax.eval.audit import (
    HELD_OUT,
    MIN_PROBLEMS,
    Table,
    audit_table,
    failed_attacks,
    file_cases,
    is_faithful,
    make_scorer,
    quickstart_cases,
    unmade_attacks,
)
from pbrl_jax.eval.evaluate import Decoder, answer_texts
from pbrl_jax.logs.progress import Progress
from pbrl_jax.pivots.store import open_store
from pbrl_jax.pivots.write import attach_references
from pbrl_jax.report.data import AUDITS
from pbrl_jax.report.plots import audit_png
from pbrl_jax.rewards.combine import gated_as_one, make_reward, policy_users, run_assets
from pbrl_jax.rewards.shaping import OverlongConfig
from pbrl_jax.run.assemble import language_texts, reference_expert, run_policy, use_compilation_cache
from pbrl_jax.run.check_verb import check_verb
from pbrl_jax.text.langid import Alternatives, is_right_language
from pbrl_jax.text.prompts import form_of
from pbrl_jax.text.token_languages import token_language_table
from pbrl_jax.weights.encoders import Encoder, load_encoder
from pbrl_jax.weights.policies import Policy, load_policy

PLAIN_COSINE: dict[str, Any] = {
    "functions": ("cosine",),
    "reward_weights": (1.0,),
    "parts": "whole",
    "language_gate": "off",
}
"""Reward settings that the audit shows beside the configured ones: similarity with nothing around it."""
SHOWN = 8


def main(config: Config, workdir: str, *, min_auc: float | None = None, limit: int = 192, replies: str = "") -> None:
    """Audit `config.reward` with the encoder of the configuration, or with the one trained in the work directory.

    Args:
      min_auc: smallest AUC that passes, in [0, 1]; None: report only.
      limit: problems per language.
      replies: JSON lines file of faithful replies; without one, those of the quickstart's task, or the right responses
        of the policy that policy.source names, which are kept in W/audit_replies.jsonl.

    Raises:
      RewardError: an AUC is below `min_auc`; the files are written all the same.
    """
    use_compilation_cache(config)
    check_verb("audit", config)
    check_replies(config, replies)
    work = work_dir(workdir)
    policy, encoder = audited_policy(config, replies), audited_encoder(config, work)
    cases = audit_cases(config, work, limit, replies, policy)
    print(*phrase_notes(config.data.languages), *unmade_attacks(cases, config.train.seed), sep="\n")
    texts = language_texts(config)
    tokenizer = encoder.tokenizer if policy is None else policy.tokenizer
    table = None if texts is None else token_language_table(tokenizer, texts, textless=False)
    pairs = gated_as_one(config.reward, [case.prompt for case in cases]).pairs
    assets = run_assets(config, encoder, table, policy, str(work.root))._replace(pairs=pairs)
    # In training a response is too long at the rollout's length; here there is none but the longest reply's.
    length = settings_of(config.reward, OverlongConfig).overlong_length or config.rollout.max_completion_length
    rewards = with_values(config, reward={"overlong_length": length}).reward, type(config.reward)(**PLAIN_COSINE)
    tables = {
        title: audit_table(cases, make_scorer(make_reward(reward, assets), encoder, tokenizer), config.train.seed)
        for title, reward in zip(AUDITS, rewards, strict=True)
    }
    for title, name in AUDITS.items():
        write_atomic(work.root / name, json.dumps(tables[title], indent=1))
    own = next(iter(tables.values()))
    made = set().union(*own.values())
    columns = [name + end for name in ATTACKS for end in ("", HELD_OUT) if name + end in made]
    pictured = installed("matplotlib")
    if pictured:
        write_atomic(work.root / "audit.png", audit_png(tables, columns))
    console = Console()
    for title, found in tables.items():
        console.print(audit_lines(found, title, min_auc))
    picture = work.root / "audit.png" if pictured else "no picture (pip install -e '.[plots]')"
    print(f"Wrote {work.root / 'audit.json'} and {picture}.")
    failed = [] if min_auc is None else failed_attacks(own, min_auc)
    if failed:
        worst = ", ".join(f"{name} in {code} ({auc:.3f})" for auc, code, name in failed[:SHOWN])
        raise RewardError(
            f"{len(failed)} of {sum(map(len, own.values()))} attacks are below --min-auc {min_auc}; the worst: {worst}."
            " Change reward.* or the encoder, and audit again."
        )


def audit_lines(table: Table, title: str, bound: float | None) -> RichTable:
    """Attacks in rows, languages in columns, `seen/held out` in per cent; values below the bound are marked."""
    lines = RichTable(
        title=f"{title}: faithful above attack, % of pairs, seen/held out", box=None, collapse_padding=True
    )
    lines.add_column("attack", no_wrap=True)
    for code in table:
        lines.add_column(code, justify="right")

    def cell(value: float | None) -> str:
        if value is None:
            return "–"
        text = f"{100 * value:.0f}"
        return f"[bold red]{text}[/]" if bound is not None and value < bound else text

    for name in ATTACKS:
        cells = (f"{cell(row.get(name))}/{cell(row.get(name + HELD_OUT))}" for row in table.values())
        lines.add_row(name.replace("_", " "), *cells)
    return lines


def audited_encoder(config: Config, work: WorkDir) -> Encoder:
    """The encoder that encoder.source names; with `random`, the one that was trained in the work directory.

    Raises:
      ConfigError: neither is there: a reward with random weights is not worth an audit.
    """
    settings = config.encoder
    if settings.source != "random":
        return load_encoder(settings.source, settings.max_length, settings.prefix, pooling=settings.pooling or None)
    return load_encoder(trained_encoder(work), settings.max_length, settings.prefix)


def trained_encoder(work: WorkDir) -> str:
    """The folder in a work directory that holds the encoder which was trained there (ConfigError: none)."""
    for folder in (work.root, work.root / "encoder"):
        if (as_path(folder) / "encoder" / "pbrl_encoder.json").exists():
            return str(folder)
    raise ConfigError(
        f"No trained encoder in {work.root}. Give the work directory of `pbrl quickstart` or `pbrl encoder`, or "
        "--encoder.source with the folder of an encoder."
    )


def audited_policy(config: Config, replies: str) -> Policy | None:
    """The policy that policy.source names, where a reward asks one or its responses are to be audited; else None.

    Raises:
      ConfigError: a reward asks a policy, and policy.source is `random`.
    """
    named = config.policy.source != "random"
    if not policy_users(config.reward) and (replies or not named):
        return None
    if not named:
        raise ConfigError("This reward asks the start policy. Name its folder: --policy.source DIR.")
    return load_policy(config.policy.source)


def replied_prompts(config: Config, work: WorkDir, replies: str) -> list[Prompt]:
    """The prompts that a file of replies names, with their references: the data set's, or those of the pivot store."""
    data = dataclasses.replace(config.data, limit=0)
    if config.pivot.source == "dataset":
        return load_prompts(data, config.train.seed, require=("reference", "answer"))
    named = {row.get("id") for row in read_json_lines(replies)}
    prompts = load_prompts(data, config.train.seed, require=("question_en", "answer"))
    chosen = [prompt for prompt in prompts if prompt.id in named]
    expert = {}
    if config.pivot.source != "file":
        expert = reference_expert(run_policy(config, work, prompts), config)
    store = open_store(config.pivot, work.root)
    return attach_references(chosen, config, store, progress=Progress, **expert)[0]


def policy_replies(config: Config, policy: Policy, limit: int) -> list[dict[str, Any]]:
    """The policy's right responses to the first `limit` prompts of each language, one each, as rows of `--replies`: of
    algo.num_generations samples the first that is right, has steps and is in its language.

    Raises:
      DataError: no language has three.
    """
    loaded = load_prompts(dataclasses.replace(config.data, limit=0), config.train.seed, require=("answer",))
    seen, chosen = Counter[str](), []
    for prompt in loaded:
        seen[prompt.language] += 1
        if seen[prompt.language] <= limit and prompt.language != "en":
            chosen.append(prompt)
    form = form_of(config.data)
    length = config.rollout.max_prompt_length
    languages: Alternatives = (*seen, *gated_as_one(config.reward, loaded).pairs)
    open_prompts, _ = fit_prompts(chosen, policy.tokenizer, length, "drop", **form)
    decoder = Decoder(
        policy.spec, policy.tokenizer, length, config.rollout.max_completion_length, config.eval.batch_size, **form
    )
    found: dict[str, list[dict[str, Any]]] = {prompt.language: [] for prompt in chosen}
    for sample in range(config.algo.num_generations):
        questions, codes = [p.asked for p in open_prompts], [p.language for p in open_prompts]
        texts = answer_texts(
            decoder, policy.params, questions, codes, config.rollout.temperature, config.train.seed + sample
        )
        left = []
        for prompt, text in zip(open_prompts, texts, strict=True):
            right = is_right_language(text, prompt.language, languages) is not False
            if right and is_faithful(text, prompt):
                found[prompt.language].append({"id": prompt.id, "language": prompt.language, "response": text})
            else:
                left.append(prompt)
        open_prompts = left
    counts = ", ".join(f"{len(rows)} of {min(limit, seen[code])} in {code}" for code, rows in found.items())
    print(f"The policy has a right response to {counts}; languages with fewer than {MIN_PROBLEMS} are left out.")
    rows = [row for rows in found.values() if len(rows) >= MIN_PROBLEMS for row in rows]
    if not rows:
        raise DataError("The policy has too few right responses to audit with. Raise --limit or algo.num_generations.")
    return rows


def audit_cases(config: Config, work: WorkDir, limit: int, replies: str, policy: Policy | None) -> list[Case]:
    """The problems of the audit, with faithful replies in each language."""
    if not replies and policy is not None and config.policy.source != "random":
        replies = str(work.root / "audit_replies.jsonl")
        write_json_lines(as_path(replies), policy_replies(config, policy, limit))
    if replies:
        return file_cases(replies, replied_prompts(config, work, replies), limit)
    return quickstart_cases(config.data.languages, limit, config.train.seed, config.data.path)


def check_replies(config: Config, replies: str) -> None:
    """Refuse an audit without faithful replies (ConfigError): a file of them, a policy's, or those of the quickstart's
    task."""
    if replies and not as_path(replies).exists():
        raise ConfigError(f"No file {replies!r}. --replies names JSON lines of id, language and response.")
    if not replies and config.policy.source == "random" and config.data.source != "quickstart":
        raise ConfigError(
            f"The audit needs faithful replies in each language, which source {config.data.source!r} does not have. "
            'Give --replies FILE.jsonl with rows {"id", "language", "response"}, or --policy.source DIR, whose right '
            "responses then serve."
        )
