"""Data sources: one module each, with `rows(path, split, languages, limit, seed)`."""

from pbrl_jax.data.sources import gsm8k, mgsm, mgsm8k, polymath, quickstart, table
from pbrl_jax.data.sources.common import PromptReader

SOURCES: dict[str, PromptReader] = {
    "quickstart": quickstart.rows,
    "gsm8k": gsm8k.rows,
    "mgsm": mgsm.rows,
    "mgsm8k": mgsm8k.rows,
    "polymath": polymath.rows,
    "table": table.rows,
}
"""`table.rows` also takes `columns`."""
