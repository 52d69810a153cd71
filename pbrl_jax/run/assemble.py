"""From a configuration and a work directory to the parts of a run."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import jax

from pbrl_jax.checkpoint import check_same_experiment, list_checkpoints, read_meta
from pbrl_jax.config.serialize import from_json
from pbrl_jax.config.tree import Config, LogConfig
from pbrl_jax.core.characters import visible
from pbrl_jax.core.errors import CheckpointError, ConfigError, DataError, lookup
from pbrl_jax.core.paths import WorkDir, write_atomic
from pbrl_jax.core.records import Prompt
from pbrl_jax.core.stopping import ends_early
from pbrl_jax.data.batches import prompt_sampler
from pbrl_jax.data.load import check_golds, dataset_fingerprint, fit_prompts, load_prompts, refuse_trained, with_english
from pbrl_jax.data.sources import quickstart
from pbrl_jax.eval.evaluate import Decoder, answer_texts, eval_metrics, evaluate
from pbrl_jax.logs.progress import Progress
from pbrl_jax.mesh.agree import is_first
from pbrl_jax.mesh.once import jit_once
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.models.decoder import init_decoder
from pbrl_jax.models.encoder import init_encoder
from pbrl_jax.models.specs import DECODERS, ENCODERS
from pbrl_jax.pivots.store import open_store
from pbrl_jax.pivots.write import TEMPLATE, attach_references, unread_references
from pbrl_jax.rewards.combine import gated_as_one, reads_references
from pbrl_jax.rewards.similarity import calibration_fingerprint
from pbrl_jax.rewards.user import load_function
from pbrl_jax.rollout.endpoint import Endpoint
from pbrl_jax.rollout.engine import beyond_positions
from pbrl_jax.run.check import batch_arithmetic, repeatability, validate
from pbrl_jax.run.embedding import reference_vectors
from pbrl_jax.run.first_prompts import first_prompts
from pbrl_jax.text.languages import check_languages, fallback_notes
from pbrl_jax.text.prompts import chat_messages, form_of
from pbrl_jax.text.token_languages import token_language_table
from pbrl_jax.text.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece
from pbrl_jax.text.wording import wording_of
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.train.fused import check_fusable
from pbrl_jax.train.optimizer import make_schedule
from pbrl_jax.train.signals import stop_agreed
from pbrl_jax.weights.encoders import Encoder, load_encoder, over_devices
from pbrl_jax.weights.policies import Policy, StartPolicy, load_policy

#: Sentences a vocabulary is trained on, at most; more changes little.
VOCABULARY_SENTENCES = 60_000


def check_start(config: Config, device_count: int | None = None, samples: bool = True) -> None:
    """Everything that can be refused before anything is loaded; `device_count` stands for the devices of this host,
    `samples` is as in `validate`."""
    for languages in (config.data.languages, config.eval.languages or config.data.languages):
        check_languages(languages)
    make_schedule(config.optim)
    validate(config, jax.device_count() if device_count is None else device_count, samples)


def refuse_other_experiment(config: Config, work: WorkDir) -> None:
    """Before anything is written: a work directory whose checkpoints are those of another configuration.

    Raises:
      CheckpointError: names every identity field that differs.
    """
    for _, folder in list_checkpoints(work.checkpoints):
        try:
            saved = read_meta(folder).get("config")
        except CheckpointError:
            continue  # damaged: an older one may tell, and the restore says so
        if saved is not None:
            notes: list[str] = []
            check_same_experiment(from_json(saved, type(config), notes), config, {}, {})
            print("".join(f"{note}\n" for note in notes if is_first()), end="")
        return


def use_compilation_cache(config: Config) -> None:
    """Keep compiled programs between runs where log.compilation_cache says so; JAX_COMPILATION_CACHE_DIR of the
    environment, with what else it says of that cache, comes before the default."""
    folder = config.log.compilation_cache
    if folder and not (folder == LogConfig().compilation_cache and os.environ.get("JAX_COMPILATION_CACHE_DIR")):
        from etils import epath

        jax.config.update("jax_compilation_cache_dir", str(epath.Path(folder).expanduser()))
        # Of some 80 programs of a small run 9 take a second or more, and the others 8 seconds together.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def training_prompts(config: Config, require: Sequence[str] = ()) -> list[Prompt]:
    """The prompts of a run, with the English side of each problem where English is replayed."""
    prompts = load_prompts(config.data, config.train.seed, require=require)
    for line in filter(None, (check_golds(prompts), *fallback_notes(config.data.languages))):
        print(visible(line))
    return with_english(prompts) if config.data.english_share > 0 else prompts


def vocabulary_lines(config: Config, prompts: Sequence[Prompt]) -> tuple[list[str], dict]:
    """(sentences, options of train_sentencepiece) for a vocabulary of the run's own text."""
    if config.data.source == "quickstart":
        lines = quickstart.vocabulary_text(config.data.languages, config.train.seed, 600, config.data.path)
        return lines, {"user_symbols": quickstart.USER_SYMBOLS}
    lines = [prompt.question for prompt in prompts]
    lines += [prompt.reference.text for prompt in prompts if prompt.reference and prompt.language == "en"]
    pieces = [piece for line in dict.fromkeys(lines) for piece in line.splitlines() if piece.strip()]
    step = -(-len(pieces) // VOCABULARY_SENTENCES)
    return pieces[::step], {"byte_fallback": True}


def run_tokenizer(config: Config, work: WorkDir, prompts: Sequence[Prompt]) -> Tokenizer:
    """The policy's tokenizer: its own, the configured one, or a vocabulary trained once and kept in the work folder.

    A vocabulary of other text or another size is made anew, as long as no checkpoint was trained with it.
    """
    if config.policy.tokenizer:
        return load_tokenizer(config.policy.tokenizer)
    folder = work.root / "tokenizer"
    file, origin = folder / "tokenizer.model", folder / "origin"
    if file.exists() and list_checkpoints(work.checkpoints):
        return load_tokenizer(str(folder))
    lines, options = vocabulary_lines(config, prompts)
    made_from = hashlib.sha256(repr((lines, config.data.vocab_size, options)).encode()).hexdigest()
    if file.exists() and origin.exists() and origin.read_text() == made_from:
        return load_tokenizer(str(folder))
    tokenizer = train_sentencepiece(lines, config.data.vocab_size, **options)
    origin.unlink(missing_ok=True)
    write_atomic(file, tokenizer.model_bytes)
    write_atomic(origin, made_from)
    return tokenizer


def run_policy(config: Config, work: WorkDir, prompts: Sequence[Prompt]) -> Policy:
    """The start policy: loaded, each device reading its own part, or new from the seed. What holds it lets its
    parameters go (`weights.policies.let_go`) when a run has taken what it keeps.

    Raises:
      CheckpointError: (where they are used again after that) the source holds another policy by now.
    """
    settings = config.policy
    operational: dict[str, Any] = {
        "dtype": settings.dtype, "remat": settings.remat, "attention": settings.attention,
        "decode_attention": settings.decode_attention,
    }  # fmt: skip
    if settings.source != "random":
        policy = load_policy(settings.source, make_mesh(config.mesh))
        check_positions(config, policy)
        fingerprint = policy.fingerprint

        def again() -> Any:
            found = load_policy(settings.source, make_mesh(config.mesh))
            if found.fingerprint != fingerprint:
                raise CheckpointError(f"{settings.source} holds another policy than when this run began. Start anew.")
            return found.params

        return StartPolicy.of(policy._replace(spec=dataclasses.replace(policy.spec, **operational)), again)
    tokenizer = run_tokenizer(config, work, prompts)
    spec = dataclasses.replace(
        lookup(DECODERS, settings.preset, "policy preset"), vocab_size=tokenizer.vocab_size, **operational
    )
    init = jit_once(init_decoder, static_argnames="spec")
    make = functools.partial(init, jax.random.key(config.train.seed), spec=spec)
    name = f"random-{settings.preset}-{config.train.seed}-{tokenizer.fingerprint[:16]}"
    return StartPolicy.of(Policy(spec, make(), tokenizer, name), make)


def policy_for_rows(config: Config, work: WorkDir) -> Policy:
    """The start policy of a run that learns from a file of rows; the prompts are read for a vocabulary alone."""
    own_words = config.policy.source == "random" and not config.policy.tokenizer
    return run_policy(config, work, training_prompts(config) if own_words else [])


def check_positions(config: Config, policy: Policy) -> None:
    """Refuse lengths of prompts and responses that are together more than the policy's positions (ConfigError)."""
    prompt = max(config.rollout.max_prompt_length, config.eval.max_prompt_length)
    written = config.pivot.max_completion_length if config.pivot.source == "policy" else 0
    response = max(config.rollout.max_completion_length, written)
    if policy.positions and prompt + response > policy.positions:
        raise ConfigError(
            f"{beyond_positions(prompt, response, policy.positions)} These are rollout.max_prompt_length (or "
            "eval.max_prompt_length) and rollout.max_completion_length (or pivot.max_completion_length)."
        )


def run_encoder(config: Config, tokenizer: Tokenizer) -> Encoder:
    """The reward's encoder: loaded, or new from the seed with the policy's tokenizer."""
    settings = config.encoder
    if settings.source != "random":
        return load_encoder(
            settings.source, settings.max_length, settings.prefix, pooling=settings.pooling or None,
            dtype=settings.dtype or None,
        )  # fmt: skip
    spec = lookup(ENCODERS, settings.preset, "encoder preset")
    spec = dataclasses.replace(
        spec,
        vocab_size=tokenizer.vocab_size,
        max_positions=max(spec.max_positions, settings.max_length),
        pooling=settings.pooling or spec.pooling,
        dtype=settings.dtype or spec.dtype,
    )
    init = jit_once(init_encoder, static_argnames="spec")  # traced once for each spec of a process
    params = init(jax.random.key(config.train.seed + 1), spec=spec)
    name = f"random-{settings.preset}-{config.train.seed}-{tokenizer.fingerprint[:16]}"
    return Encoder(spec, params, tokenizer, name, settings.max_length, settings.prefix)


def sample_texts_of(policy: Policy, config: Config, progress: Progress | None = None):
    """English questions -> responses of a policy: the expert of pivot.source=policy."""
    decoder = Decoder(
        policy.spec, policy.tokenizer, config.rollout.max_prompt_length, config.pivot.max_completion_length,
        config.eval.batch_size, weights=config.rollout.weights, **form_of(config.data),
    )  # fmt: skip

    def answer(questions: list[str], sample: int = 0) -> list[str]:
        if not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(policy.params)):
            raise ConfigError(
                f"{len(questions)} references are missing, and one host writes them: run `pbrl pivots CONFIG --workdir "
                "W` on it first; this run then finds them."
            )
        languages, seed = ["en"] * len(questions), config.train.seed + sample
        return answer_texts(decoder, policy.params, questions, languages, config.pivot.temperature, seed,
                            should_stop=ends_early)  # fmt: skip

    return answer


def expert_template(config: Config) -> str:
    """How the expert is asked, as the pivot store records it: another form is another reference."""
    style, thinking = config.data.prompt_style, config.data.thinking
    form = "" if style == "plain" else f"{style}: " if thinking == "default" else f"{style}, thinking {thinking}: "
    own = wording_of(config.data).turns(TEMPLATE, "en")
    return form + (TEMPLATE if own is None else json.dumps(own))


def reference_expert(policy: Policy, config: Config) -> dict:
    """Who writes references: the arguments `sample_texts, expert, revision` of attach_references."""
    if config.pivot.source != "endpoint":
        return {
            "sample_texts": sample_texts_of(policy, config),
            "expert": config.policy.source,
            "revision": policy.fingerprint,
            "template": expert_template(config),
        }
    endpoint, wording = Endpoint(config.endpoint), wording_of(config.data)
    # Words of its own aside, an endpoint is asked as the style chat asks.
    style = "chat_question" if config.data.prompt_style == "chat_question" else "chat"

    def answer(questions: list[str], sample: int = 0) -> list:
        requests = [chat_messages(question, "en", style, wording) for question in questions]
        return endpoint.ask_all(
            requests, temperature=config.pivot.temperature, max_tokens=config.pivot.max_completion_length,
            seed=config.train.seed + sample,
        )  # fmt: skip

    messages = chat_messages(TEMPLATE, "en", style, wording)
    name, template = f"endpoint:{config.endpoint.model}", "\n\n".join(turn["content"] for turn in messages)
    return {"sample_texts": answer, "expert": name, "revision": "endpoint", "template": template}


def language_texts(config: Config) -> dict[str, list[str]] | None:
    """Text of each language alone, for the token gate; None where the source has none, or nothing looks at it."""
    if config.data.source != "quickstart" or not (config.train.fused or config.reward.language_gate == "tokens"):
        return None
    pool = quickstart.problems("sft", 0, config.train.seed, config.data.path)[:2000]
    codes = dict.fromkeys((*config.data.languages, "en") if config.data.english_share > 0 else config.data.languages)
    return {code: [quickstart.response(p, code) for p in pool] for code in codes}


def build_experiment(config: Config, work: WorkDir, part: tuple[int, int] | None = None) -> Experiment:
    """Load, encode and embed everything a run needs; nothing is trained yet.

    Raises:
      PbrlError: whatever is wrong with the configuration, the data, the references or the models.
    """
    check_start(config)
    for name in config.reward.functions:
        if ":" in name:
            load_function(name)
    refuse_other_experiment(config, work)
    prompts = training_prompts(config)
    policy = run_policy(config, work, prompts)
    encoder = run_encoder(config, policy.tokenizer)
    if config.train.fused:
        check_fusable(config, policy.tokenizer.fingerprint == encoder.tokenizer.fingerprint, encoder.prefix)
    store = open_store(config.pivot, work.root, writes=is_first())
    if config.pivot.source == "dataset" and not reads_references(config.reward):
        prompts, report = unread_references(prompts, config)
    else:
        bar = functools.partial(Progress, part=part)
        prompts, report = attach_references(prompts, config, store, progress=bar, **reference_expert(policy, config))
    print(visible(report.describe()))
    form = form_of(config.data)
    kept, ids = fit_prompts(
        prompts, policy.tokenizer, config.rollout.max_prompt_length, config.data.overlong_prompts, **form
    )
    print(visible("\n".join(first_prompts(kept, ids, policy.tokenizer, form))))
    mesh = make_mesh(config.mesh)
    encoder = over_devices(encoder, mesh)
    pivots = reference_vectors(kept, encoder, store)
    texts = language_texts(config)
    fingerprints = {
        "dataset": dataset_fingerprint(kept, wording_of(config.data)),
        "pivots": report.fingerprint,
        "policy": policy.fingerprint,
        "encoder": encoder.key,
        **calibration_fingerprint(config.reward, config.data.languages),
    }
    sampler = prompt_sampler(config, kept)
    notes = [repeatability(jax.default_backend(), os.environ.get("XLA_FLAGS", ""))]
    print(
        *filter(None, [*notes, *gated_as_one(config.reward, sampler.target).notes]),
        batch_arithmetic(config, jax.device_count()),
        sep="\n",
    )
    return Experiment(
        config=config,
        work=work,
        mesh=mesh,
        policy=policy,
        encoder=encoder,
        sampler=sampler,
        prompt_tokens={p.id: row for p, row in zip(kept, ids, strict=True)},
        pivot_rows={p.id: row for row, p in enumerate(kept)},
        pivots=pivots,
        token_table=None if texts is None else token_language_table(policy.tokenizer, texts, textless=False),
        fingerprints=fingerprints,
    )


def evaluation_prompts(config: Config, trained: Sequence[Prompt] | None = None) -> list[Prompt]:
    """The problems that the run is evaluated on, with gold answers; `trained`: the training prompts, where they are
    loaded already.

    Raises:
      DataError: bad data, or problems that are trained on, too, without eval.training_rows.
    """
    settings = config.eval
    data = config.data
    if settings.source:
        data = dataclasses.replace(data, source=settings.source, path=settings.path, columns=settings.columns)
    else:
        data = dataclasses.replace(data, path=settings.path or data.path, columns=settings.columns or data.columns)
    found = load_prompts(
        data, config.train.seed, split=settings.split, languages=settings.languages or config.data.languages,
        limit=settings.limit, require=("answer",),
    )  # fmt: skip
    if not settings.training_rows:
        refuse_trained(
            found, with_english(load_prompts(config.data, config.train.seed)) if trained is None else trained
        )
    return found


def asks_for_evaluation(config: Config) -> bool:
    """Whether a setting asks for one; else a run is evaluated where its data have answers."""
    return bool(config.eval.source or config.eval.path or config.train.eval_steps)


def make_evaluate(config: Config, policy: Policy, trained: Sequence[Prompt] | None = None):
    """params -> metrics, on prompts that are loaded once (`evaluation_prompts`); those that are too long are dropped
    and counted.

    The function raises Interrupted between two segments of tokens when a stop is requested.

    None, with a line that says why, where the training source has no problems to evaluate on and no setting asks for
    an evaluation.

    Raises:
      PbrlError: eval.source or eval.steps ask for an evaluation that the data cannot give.
    """
    length = config.eval.max_prompt_length or config.rollout.max_prompt_length
    try:
        loaded = evaluation_prompts(config, trained)
    except (ConfigError, DataError) as error:
        if asks_for_evaluation(config):
            raise
        print(f"No evaluation (set eval.source for one): {visible(str(error))}")
        return None
    prompts, _ = fit_prompts(loaded, policy.tokenizer, length, "drop", **form_of(config.data))
    decoder = Decoder(
        policy.spec, policy.tokenizer, length, config.rollout.max_completion_length, config.eval.batch_size,
        weights=config.rollout.weights, **form_of(config.data),
    )  # fmt: skip

    def run(params) -> dict[str, float]:
        table, _ = evaluate(decoder, params, prompts, should_stop=stop_agreed)
        return eval_metrics(table)

    return run
