"""`pbrl sft CONFIG --workdir W`: a start policy by supervised fine-tuning on references."""

import hashlib
from collections import Counter
from typing import NamedTuple

from jax.sharding import Mesh

from pbrl_jax.config.older import stable_repr
from pbrl_jax.config.serialize import to_json
from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import WorkDir, write_atomic
from pbrl_jax.data.load import load_prompts, lost_languages
from pbrl_jax.data.sources import quickstart
from pbrl_jax.mesh.sharding import make_mesh, row_shards
from pbrl_jax.run.check_verb import begin
from pbrl_jax.run.sft_sources import supervised_rows
from pbrl_jax.text.prompts import form_of, format_prompts, response_end
from pbrl_jax.text.tokenizers import Tokenizer
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.sft import make_sft_step, mixed_rows, pad_sft, pool_counts, sft_optimizer_config
from pbrl_jax.train.sft_packing import pack_rows
from pbrl_jax.train.staged import Stage, run_stage
from pbrl_jax.train.start import merged_params, start_params, taken
from pbrl_jax.train.state import place_state
from pbrl_jax.weights.policies import Policy, let_go, save_policy


class Supervised(NamedTuple):
    """Tokenised pools of (prompt, response) and the rows a batch takes from each."""

    pools: dict[str, list[tuple[list[int], list[int]]]]
    counts: dict[str, int]


def quickstart_pools(config: Config) -> tuple[dict[str, list[quickstart.Example]], dict[str, float]]:
    """The quickstart's mixture: much English, bare equations, few problems in each other language."""
    pools = quickstart.sft_pools(
        config.data.languages, english=config.sft.english_rows, warm=config.sft.warm_rows_per_language,
        practice=config.sft.english_rows // 2, seed=config.train.seed, space=config.data.path,
    )  # fmt: skip
    shares = {"english": 0.6, "equations": 0.2, "warm": 0.2}
    return {name: pools[name] for name in shares}, shares


def reference_pool(config: Config) -> tuple[dict[str, list[quickstart.Example]], dict[str, float]]:
    """English questions with their own references: the supervised text that every source with references has."""
    prompts = load_prompts(config.data, config.train.seed, languages=("en",), require=("reference",))
    rows = [quickstart.Example("en", p.question_en, p.reference.text) for p in prompts if p.reference]
    return {"english": rows}, {"english": 1.0}


def pivot_pools(config: Config) -> tuple[dict[str, list[quickstart.Example]], dict[str, float]]:
    """sft.source pivot: the quickstart's mixture, or the references that a data set has."""
    return quickstart_pools(config) if config.data.source == "quickstart" else reference_pool(config)


def supervised(config: Config, tokenizer: Tokenizer, rows: list[quickstart.Example] | None = None) -> Supervised:
    """The pools as tokens; rows that do not fit the lengths are left out and counted.

    Args:
      rows: the only pool; default: the pivots.
    """
    source: str = config.sft.source
    pools, shares = ({source: rows}, {source: 1.0}) if rows else pivot_pools(config)
    ends = response_end(tokenizer, config.data.prompt_style)
    form, rollout = form_of(config.data), config.rollout

    def fits(prompt: list[int], response: list[int]) -> bool:
        return len(prompt) <= rollout.max_prompt_length and len(response) <= rollout.max_completion_length

    encoded = {}
    for name, rows in pools.items():
        prompts = format_prompts([r.question for r in rows], [r.language for r in rows], tokenizer, **form)
        responses = tokenizer.encode_batch([r.response for r in rows])
        # A text without a prompt, of a tokenizer without a beginning of sequence: its first token is predicted by none.
        whole = [(p, r) if p else (r[:1], r[1:]) for p, r in zip(prompts, responses, strict=True)]
        pairs = [(p, [*r, *ends]) for p, r in whole]
        fit = [pair for pair in pairs if fits(*pair)]
        if not fit:
            needed = min(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
            raise DataError(
                f"No row of the supervised pool {name!r} fits rollout.max_prompt_length="
                f"{config.rollout.max_prompt_length} and max_completion_length={config.rollout.max_completion_length}: "
                f"the shortest has {len(needed[0])} + {len(needed[1])} tokens. Raise them, for example "
                f"--rollout.max-completion-length {2 * len(needed[1])}."
            )
        if len(fit) < len(pairs):
            kept = [row.language for row, pair in zip(rows, pairs, strict=True) if fits(*pair)]
            left = Counter(row.language for row in rows) - Counter(kept)
            counts = ", ".join(f"{code} {count}" for code, count in sorted(left.items()))
            found = f"Supervised pool {name}: {len(pairs) - len(fit)} of {len(pairs)} rows are too long ({counts})"
            if lost := lost_languages([row.language for row in rows], kept):
                raise DataError(f"{found}: none of {lost} is left. Raise rollout.max_prompt_length or "
                                "max_completion_length, or leave these languages out.")  # fmt: skip
            print(f"{found} and left out.")
        encoded[name] = fit
    return Supervised(encoded, pool_counts(shares, config.sft.batch_size))


def train_supervised(config: Config, work: WorkDir, policy: Policy, mesh: Mesh, part=None,
                     rows: list[quickstart.Example] | None = None) -> Policy:  # fmt: skip
    """The policy after sft.steps; resumes from the work directory.

    Args:
      policy: a start policy lets its parameters go here; another's stay its owner's.
      rows: what it learns; default: the pivots (see `supervised`).

    Raises:
      Interrupted: a stop was requested; the state is saved.
    """
    settings = config.sft
    data = supervised(config, policy.tokenizer, rows)
    sizes = {name: len(rows) for name, rows in data.pools.items()}
    optim = sft_optimizer_config(config.sft)
    params, axes, gives = taken(policy, config, bool(config.lora.rank))
    state = place_state(params, make_optimizer(optim), axes, mesh, donate=gives)
    frozen = start_params(policy, config, mesh) if config.lora.rank else None
    del params
    let_go(policy)
    step = make_sft_step(policy.spec, optim, config.train.logprob_chunk, config.lora, settings.microbatch_size)
    lengths = (config.rollout.max_prompt_length, config.rollout.max_completion_length)

    def batch_at(index: int):
        rows = [data.pools[n][i] for n, i in mixed_rows(sizes, data.counts, config.train.seed, index)]
        prompts, responses = [p for p, _ in rows], [r for _, r in rows]
        if settings.packed:
            return pack_rows(prompts, responses, sum(lengths), row_shards(mesh), settings.microbatch_size)
        return pad_sft(prompts, responses, *lengths)

    optimizer = stable_repr(optim, "OptimConfig")
    identity = f"({data!r}, {optimizer}, {policy.fingerprint!r}, {lengths!r}, {config.train.seed!r})"
    identity += stable_repr(config.lora, "LoraConfig") if config.lora.rank else ""
    stage = Stage(
        "sft", config.sft.steps, 200, hashlib.sha256(identity.encode()).hexdigest(), part,
        config.guard.max_skipped_updates,
    )  # fmt: skip
    state = run_stage(stage, work, mesh, state, step, batch_at, frozen)
    return policy._replace(params=merged_params(state.params, frozen, config.lora), fingerprint=stage.fingerprint)


def main(config: Config, workdir: str) -> None:
    """Train the start policy and leave it in W/policy."""
    work = begin("sft", config, workdir)
    policy, rows = supervised_rows(config, work)
    trained = train_supervised(config, work, policy, make_mesh(config.mesh), rows=rows)
    save_policy(trained, str(work.root / "policy"))
    write_atomic(work.config, to_json(config))
    print(f"Start policy: {work.root / 'policy'}. Use it with --policy.source {work.root}.")
