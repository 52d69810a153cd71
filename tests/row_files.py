"""Files of rows as other trainers write them."""

import json

ASK = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Ngapi?"}]


def write(path, rows) -> str:
    """The rows as parquet or JSON lines, by the path's ending; its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
