"""The audit as a table on the terminal and as a picture."""

import io
from collections.abc import Mapping

import numpy as np
from rich.table import Table as RichTable

from pbrl_jax.eval.attacks import ATTACKS
from pbrl_jax.eval.audit import HELD_OUT, Table


def audit_lines(table: Table, title: str, bound: float | None) -> RichTable:
    """Attacks in rows, languages in columns, `seen/held out` in per cent; what is below the bound is marked."""
    found = RichTable(
        title=f"{title}: faithful above attack, % of pairs, seen/held out", box=None, collapse_padding=True
    )
    found.add_column("attack", no_wrap=True)
    for code in table:
        found.add_column(code, justify="right")

    def cell(value: float) -> str:
        text = f"{100 * value:.0f}"
        return f"[bold red]{text}[/]" if bound is not None and value < bound else text

    for name in ATTACKS:
        cells = (f"{cell(row[name])}/{cell(row[name + HELD_OUT])}" for row in table.values())
        found.add_row(name.replace("_", " "), *cells)
    return found


def audit_picture(tables: Mapping[str, Table]) -> bytes:
    """A PNG with one panel for each of the named tables: languages down, attacks across, AUC as colour and number."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(tables), 1, squeeze=False, layout="constrained")
    names = [name + end for name in ATTACKS for end in ("", HELD_OUT)]
    rows = max(len(table) for table in tables.values())
    figure.set_size_inches(0.42 * len(names) + 2, len(tables) * (0.34 * rows + 2.2))
    for axis, (title, table) in zip(axes[:, 0], tables.items(), strict=True):
        values = np.array([[row[name] for name in names] for row in table.values()])
        image = axis.imshow(values, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7)
        axis.set_yticks(range(len(table)), list(table))
        labels = [name.replace("_", " ") for name in names]
        axis.set_xticks(range(len(names)), labels, rotation=60, ha="right", fontsize=7)
        axis.set_title(f"{title}: share of pairs with the faithful reply above the attack, %", fontsize=9)
        figure.colorbar(image, ax=axis, fraction=0.02)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()
