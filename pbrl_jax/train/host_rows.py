"""The rows of a rollout that each host decodes and scores, and what all hosts learn of all rows.

Small arrays [B] and the texts that are logged go to every host, so that metrics, dynamic sampling and the guards see
the whole batch, and decide the same everywhere.
"""

import base64
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pbrl_jax.config.tree import Config
from pbrl_jax.core.records import Rollout, Scores, on_host
from pbrl_jax.logs.samples import round_robin
from pbrl_jax.mesh import agree
from pbrl_jax.mesh.rows import fetch_rows
from pbrl_jax.rewards.combine import Combined
from pbrl_jax.train.step import Drawn


class HostRows(NamedTuple):
    """B rows on the host, or some of them: texts, rollout and rewards, NumPy arrays throughout.

    Of other hosts' rows only the texts that are logged are there ("" for the others), and no tokens.
    """

    texts_B: Sequence[str]
    rollout: Rollout
    rewards: Combined
    rewards_BF: np.ndarray | None = None


def own_rollout(rollout: Rollout, own_B: np.ndarray) -> Rollout:
    """The rows `own_B` of a rollout, as NumPy arrays: all of it where the host is alone."""
    if agree.host_count() == 1:
        return jax.device_get(rollout)
    return jax.tree.map(lambda x: fetch_rows(x, own_B), rollout)


def logged_rows(config: Config, drawn: Drawn, rows: int) -> set[int]:
    """The rows whose texts every host needs: those that `logs.samples.write_samples` will choose; all where dynamic
    sampling may still move rows."""
    if config.algo.max_sampling_rounds > 1:
        return set(range(rows))
    languages = [prompt.language for prompt in drawn.prompts_P for _ in range(rows // len(drawn.prompts_P))]
    named = [{"language": language, "row": row} for row, language in enumerate(languages)]
    return {row["row"] for row in round_robin(named, config.log.samples_per_step, turn=drawn.step + 1)}


def on_all_hosts(score: Callable[[], HostRows], own_B: np.ndarray, rows: int, logged: set[int]) -> HostRows:
    """All rows: this host's from `score`, the others' from their hosts.

    Args:
      score: scores the rows `own_B`; not called where there are none.
      rows: B.
      logged: rows whose texts are wanted on every host.

    Raises:
      HostError: (on every host) one of them failed.
    """
    if agree.host_count() == 1:
        return score()

    def mine() -> dict[str, Any] | None:
        if not len(own_B):
            return None
        found = score()
        wanted = [at for at, row in enumerate(own_B) if row in logged]
        texts = {int(own_B[at]): found.texts_B[at] for at in wanted}
        english_B = found.rewards.translation_B
        english = None if english_B is None else {int(own_B[at]): str(english_B[at]) for at in wanted}
        return {"rows": own_B.tolist(), "texts": texts, "english": english, "arrays": _packed(found)}

    texts_B = [""] * rows
    columns: dict[str, np.ndarray] = {}
    english: dict[str, str] | None = {}
    for told in filter(None, agree.agreed("rewards", mine)):
        for name, array in told["arrays"].items():
            part = _array(array, len(told["rows"]))
            columns.setdefault(name, np.zeros((rows, *part.shape[1:]), part.dtype))[told["rows"]] = part
        for row, text in told["texts"].items():
            texts_B[int(row)] = text
        english = None if told["english"] is None or english is None else english | told["english"]
    found = _unpacked(texts_B, columns)
    if english is None:
        return found
    translation_B = np.array([english.get(str(row), "") for row in range(rows)], dtype="O")
    return found._replace(rewards=found.rewards._replace(translation_B=translation_B))


def _packed(found: HostRows) -> dict[str, list[str]]:
    """Every array under a name of its own, as JSON can hold it, bit by bit."""
    rewards = found.rewards
    columns = {"right": rewards.right_language_B, "length": found.rollout.lengths_B, "cut": found.rollout.truncated_B}
    for name, scores in {"": rewards.total, **rewards.each}.items():
        columns |= {f"value\t{name}": scores.value_B, f"valid\t{name}": scores.valid_B}
        columns |= {f"part\t{name}\t{part}": column for part, column in scores.parts.items()}
        columns |= {} if scores.applies_B is None else {f"applies\t{name}": scores.applies_B}
    if found.rewards_BF is not None:
        columns["apart"] = found.rewards_BF
    return {
        name: [np.asarray(x).dtype.str, base64.b64encode(np.ascontiguousarray(x).tobytes()).decode()]
        for name, x in columns.items()
    }


def _array(told: list[str], rows: int) -> np.ndarray:
    flat = np.frombuffer(base64.b64decode(told[1]), told[0])
    return flat.reshape(rows, -1) if flat.size != rows else flat


def _unpacked(texts_B: Sequence[str], columns: dict[str, np.ndarray]) -> HostRows:
    each = {}
    for key in columns:
        kind, _, name = key.partition("\t")
        if kind == "value":
            parts = {other.split("\t")[2]: x for other, x in columns.items() if other.startswith(f"part\t{name}\t")}
            applies_B = columns.get(f"applies\t{name}")
            each[name] = on_host(Scores, columns[key], columns[f"valid\t{name}"], parts, applies_B)
    none_BR = np.zeros((len(texts_B), 0))
    rollout = on_host(Rollout, none_BR.astype(np.int32), columns["length"], none_BR.astype(np.float32), columns["cut"])
    return HostRows(texts_B, rollout, Combined(each.pop(""), each, columns["right"]), columns.get("apart"))
