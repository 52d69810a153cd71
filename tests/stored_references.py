"""References of the pivot tests, and damage to a shard that only a checksum finds."""

import pyarrow.parquet

from pbrl_jax.pivots.store import Origin, StoredReference

ORIGIN = Origin("How many are 3 bags of 6?", "expert", "r1", "{question}", 0.0, 64, 0)


def stored(number: int, **changes) -> StoredReference:
    """The reference of `number` + 1."""
    origin = ORIGIN._replace(question=f"What is {number} + 1? — «é»\u2028", **changes)
    return StoredReference(origin, f"{number} + 1 = {number + 1}.", f"The answer is {number + 1}.", True)


def keys(rows) -> list[str]:
    """The keys of references."""
    return [row.key for row in rows]


def flip_text(path) -> None:
    """Flip a bit of the reasoning texts of a shard; its keys stay readable."""
    file = pyarrow.parquet.ParquetFile(path)
    column = file.metadata.row_group(0).column(file.schema_arrow.get_field_index("reasoning"))
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
