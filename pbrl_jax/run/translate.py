"""`pbrl translate IN.jsonl OUT.jsonl --to sw,bn --translator MODEL`: English prompts into the target languages."""

import dataclasses

from pbrl_jax.config.tree import EndpointConfig
from pbrl_jax.core.errors import ConfigError, EndpointError
from pbrl_jax.core.paths import sha256_file
from pbrl_jax.logs.progress import Progress
from pbrl_jax.rewards.text_similarity import chrf
from pbrl_jax.rollout.endpoint import Endpoint
from pbrl_jax.run.options import TranslateOptions, names_in
from pbrl_jax.text.languages import check_languages
from pbrl_jax.train.signals import watch_signals
from pbrl_jax.translate.cache import CachedTranslator
from pbrl_jax.translate.load import load_translator
from pbrl_jax.translate.questions import Checks, Job, check_settings, output_files, read_questions, translate_rows
from pbrl_jax.translate.translator import EndpointTranslator


def main(arguments: TranslateOptions) -> None:
    """Translate, check, write OUT.jsonl and OUT.rejected.jsonl, and print what was rejected and why.

    Raises:
      EndpointError: some rows got no answer; the same command repeats them.
    """
    watch_signals()
    targets = check_languages(names_in(arguments.to))
    if "en" in targets:
        raise ConfigError("--to names en; the prompts are English already. Leave it out.")
    checks = Checks(not arguments.no_back_translation, arguments.min_agreement)
    rows = read_questions(arguments.source, arguments.column)
    rows = rows[: arguments.limit] if arguments.limit else rows
    files = output_files(arguments.target)
    translator = _translator(arguments)
    check_settings(files, {
        "source_sha256": sha256_file(arguments.source), "column": arguments.column,
        "translator": translator.fingerprint, **checks._asdict(),
    })  # fmt: skip
    cache = CachedTranslator(translator, files.cache, uses_incomplete=False)
    with Progress("translate", len(rows) * len(targets), unit="row") as bar:
        job = Job(
            arguments.column, targets, files, cache.translate, chrf, checks, arguments.batch_size,
            translator.uses_incomplete,
        )  # fmt: skip
        counts = translate_rows(rows, job, bar.advance)
    print(f"{counts.accepted} accepted: {files.out}")
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.reasons.items()))
    print(f"{counts.rejected} rejected: {files.rejected}" + (f" ({reasons})" if reasons else ""))
    if counts.accepted:
        print(f"To train on them: --data.source table --data.path {files.out} --data.languages {' '.join(targets)}")
    if counts.unanswered:
        raise EndpointError(f"{counts.unanswered} rows got no answer. The same command asks for them again.")


def _translator(arguments: TranslateOptions):
    if arguments.translator != "endpoint":
        return load_translator(arguments.translator)
    if not arguments.endpoint_url or not arguments.endpoint_model:
        raise ConfigError(
            f"--endpoint-url is {arguments.endpoint_url!r} and --endpoint-model {arguments.endpoint_model!r}; expected "
            "an address and a model, for example --endpoint-url http://localhost:8000/v1 --endpoint-model NAME."
        )
    endpoint = EndpointConfig(
        url=arguments.endpoint_url, model=arguments.endpoint_model, max_requests=arguments.max_requests
    )
    return EndpointTranslator(Endpoint(dataclasses.replace(endpoint, timeout=arguments.timeout)))
