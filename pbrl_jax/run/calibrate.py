"""`pbrl calibrate CONFIG --workdir W`: measure an encoder's cosines on parallel text; writes W/calibration.json."""

import json
import sys

from rich.console import Console
from rich.table import Table

from pbrl_jax.config.tree import Config
from pbrl_jax.core.paths import work_dir, write_atomic
from pbrl_jax.data.load import load_prompts
from pbrl_jax.eval.calibrate import calibrate, pairs_from_file, pairs_from_prompts, premium_warnings
from pbrl_jax.run.assemble import use_compilation_cache
from pbrl_jax.run.audit import audited_encoder
from pbrl_jax.run.check_verb import check_verb

COLUMNS = ("pairs", "matched_mean", "matched_std", "mismatched_mean", "mismatched_std", "auc",
           "same_language_premium", "baseline")  # fmt: skip


def main(config: Config, workdir: str, *, pairs: str = "", limit: int = 1000) -> None:
    """Measure, print a table, warn, and write the file that reward.calibration names.

    Args:
      pairs: JSON lines of parallel text, `{"lang", "src", "en"}`, plain or .gz; empty: the questions of the
        configuration's data and their English counterparts.
      limit: pairs per language; 0: all.
    """
    use_compilation_cache(config)
    check_verb("calibrate", config)
    work = work_dir(workdir)
    encoder = audited_encoder(config, work)
    if pairs:
        found = pairs_from_file(pairs, config.data.languages, limit)
    else:
        found = pairs_from_prompts(load_prompts(config.data, config.train.seed, require=("question_en",)), limit)
    record = calibrate(encoder.embed, encoder.key, found)
    path = work.root / "calibration.json"
    write_atomic(path, json.dumps(record, indent=1))
    title = "Cosine of texts with their English counterparts, and with other English texts"
    table = Table(title=title, box=None, collapse_padding=True)
    table.add_column("language")
    for name in COLUMNS:
        table.add_column(name.replace("_", " "), justify="right")
    for code, row in record["languages"].items():
        cells = (str(row[name]) if name == "pairs" else f"{row[name]:.3f}" for name in COLUMNS)
        table.add_row(code, *cells)
    Console().print(table)
    for line in premium_warnings(record):
        print(f"Warning: {line}", file=sys.stderr)
    print(f"Wrote {path}. To use it: --reward.similarity calibrated --reward.calibration {path}")
