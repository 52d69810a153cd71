"""Damage to a shard of references that only a checksum finds."""

import pyarrow.parquet


def flip_text(path) -> None:
    """Flip a bit of the reasoning texts of a shard; its keys stay readable."""
    file = pyarrow.parquet.ParquetFile(path)
    column = file.metadata.row_group(0).column(file.schema_arrow.get_field_index("reasoning"))
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
