"""COYO-700M metadata: parquet files -> rows by number, and which of them are duplicates.

    metadata = CoyoMetadata.open("s3://bucket/coyo")         # a folder or one file, local or s3
    table = metadata.read(5000, 6000)                        # columns as in SCHEMA, plus any others
    duplicates = find_duplicates(metadata, ("url", "image_phash"))

Rows are numbered through all files in the order of their names, so a range of rows is the same
rows on every machine. Schema: https://github.com/kakaobrain/coyo-dataset.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.storage.interface import Storage, StorageConfig
from data_pipeline.storage.stores import open_storage
from t2i.console import progress

INT_COLUMNS = (
    "width",
    "height",
    "text_length",
    "word_count",
    "num_tokens_bert",
    "num_tokens_gpt",
    "num_faces",
)
FLOAT_COLUMNS = (
    "clip_similarity_vitb32",
    "clip_similarity_vitl14",
    "nsfw_score_opennsfw2",
    "nsfw_score_gantman",
    "watermark_score",
    "aesthetic_score_laion_v2",
)
# Read as the wider types, so that nothing is rounded: files may hold 32 or 64 bits.
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("url", pa.string()),
        ("text", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("image_phash", pa.string()),
        *[(name, pa.int64()) for name in INT_COLUMNS[2:]],
        *[(name, pa.float64()) for name in FLOAT_COLUMNS],
    ]
)


@dataclass(frozen=True)
class CoyoMetadata:
    """Parquet files in the COYO-700M schema, seen as one table of ``num_rows`` rows.

    ``keys`` are the files in ``storage``; ``starts`` the number of each file's first row.
    """

    storage: Storage
    keys: tuple[str, ...]
    starts: tuple[int, ...]
    num_rows: int

    @classmethod
    def open(cls, url: str, config: StorageConfig | None = None) -> CoyoMetadata:
        """One parquet file, or all in a folder (sorted by name), local or ``s3://``.

        Raises:
            FileNotFoundError: no file there.
            ValueError: a file lacks columns of the schema or has one of another kind.
        """
        storage, keys = _find_files(url, config)
        starts, num_rows = [], 0
        for key in keys:
            file = pq.ParquetFile(storage.local(key))
            _check_columns(file.schema_arrow, f"{storage.url}/{key}")
            starts.append(num_rows)
            num_rows += file.metadata.num_rows
        return cls(storage, keys, tuple(starts), num_rows)

    def fingerprint(self) -> list[str]:
        """What identifies the metadata: name, size and rows of each file, not their place."""
        ends = [*self.starts[1:], self.num_rows]
        return [
            f"{key} ({self.storage.size(key)} bytes, {end - start} rows)"
            for key, start, end in zip(self.keys, self.starts, ends, strict=True)
        ]

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows [start, stop), types as in `SCHEMA`; only the row groups concerned are read.

        Columns that `SCHEMA` does not have follow after its own, as they are.
        """
        assert 0 <= start < stop <= self.num_rows, (start, stop, self.num_rows)
        pieces = []
        first = bisect.bisect_right(self.starts, start) - 1
        for key, file_start in zip(self.keys[first:], self.starts[first:], strict=True):
            if file_start >= stop:
                break
            file = pq.ParquetFile(self.storage.local(key))
            pieces += list(_read_groups(file, start - file_start, stop - file_start, columns))
        return pa.concat_tables(pieces, promote_options="permissive")

    def iterate(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """These columns of all rows, one row group at a time."""
        for key in self.keys:
            file = pq.ParquetFile(self.storage.local(key))
            yield from _read_groups(file, 0, file.metadata.num_rows, columns)


def find_duplicates(metadata: CoyoMetadata, columns: Sequence[str], num_rows: int) -> np.ndarray:
    """Which of the first ``num_rows`` rows repeat the value of an earlier one in any of
    ``columns``: bool (num_rows,).

    The first row with a value wins, whether it can be downloaded or not, so the answer depends on
    the metadata alone. Nulls and empty strings are no duplicates. Values are compared by 64-bit
    hashes: the odds that any two of 100M different values match are 1 in 3,700 for each column.
    Memory: about 30 bytes a row, so 3 GB for 100M rows; one column after the other.
    """
    duplicate = np.zeros(num_rows, dtype=bool)
    for column in columns:
        hashes, is_value = _hash_column(metadata, column, num_rows)
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        repeats = order[1:][hashes[1:] == hashes[:-1]]
        duplicate[repeats] |= is_value[repeats]
    return duplicate


def _hash_column(
    metadata: CoyoMetadata, column: str, num_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """(64-bit hashes, whether there is a value), uint64 and bool (num_rows,)."""
    hashes = np.empty(num_rows, dtype=np.uint64)
    is_value = np.empty(num_rows, dtype=bool)
    start = 0
    with progress(f"hashes of {column}", num_rows, "rows") as bar:
        for table in metadata.iterate([column]):
            values = table[column].to_pylist()[: num_rows - start]
            rows = slice(start, start + len(values))
            hashes[rows] = np.frombuffer(b"".join(_hash(value) for value in values), np.uint64)
            is_value[rows] = [bool(value) for value in values]
            start = rows.stop
            bar.update(len(values))
            if start == num_rows:
                break
    assert start == num_rows, (start, num_rows)
    return hashes, is_value


def _hash(value: str | None) -> bytes:
    return hashlib.blake2b((value or "").encode(), digest_size=8).digest()


def _find_files(url: str, config: StorageConfig | None) -> tuple[Storage, tuple[str, ...]]:
    folder, _, name = url.rstrip("/").rpartition("/")
    parent = open_storage(folder or ".", config)
    if name.endswith(".parquet") and parent.exists(name):
        return parent, (name,)
    storage = open_storage(url, config)
    keys = tuple(key for key in storage.list() if key.endswith(".parquet"))
    if not keys:
        raise FileNotFoundError(f"{url}: no such parquet file, and no folder with *.parquet in it")
    return storage, keys


def _check_columns(schema: pa.Schema, name: str) -> None:
    missing = [column for column in SCHEMA.names if column not in schema.names]
    if missing:
        raise ValueError(
            f"{name}: not in the COYO-700M schema, lacks {', '.join(missing)} "
            f"(it has {', '.join(schema.names)})"
        )
    for field in SCHEMA:
        if not _is_same_kind(schema.field(field.name).type, field.type):
            found = schema.field(field.name).type
            raise ValueError(f"{name}: column {field.name} is {found}, expected {field.type}")


def _is_same_kind(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_null(found):
        return True
    if pa.types.is_string(wanted):
        return pa.types.is_string(found) or pa.types.is_large_string(found)
    if pa.types.is_integer(wanted):
        return pa.types.is_integer(found)
    return pa.types.is_floating(found)


def _read_groups(
    file: pq.ParquetFile, start: int, stop: int, columns: Sequence[str] | None
) -> Iterator[pa.Table]:
    """Rows [start, stop) of a file, clipped to it, one table for each row group."""
    group_start = 0
    for group in range(file.num_row_groups):
        group_rows = file.metadata.row_group(group).num_rows
        begin, end = max(start - group_start, 0), min(stop - group_start, group_rows)
        if begin < end:
            table = file.read_row_group(group, columns)
            yield _as_schema(table).slice(begin, end - begin)
        group_start += group_rows


def _as_schema(table: pa.Table) -> pa.Table:
    """The columns in the order and with the types of `SCHEMA`, others after them."""
    own = [name for name in SCHEMA.names if name in table.column_names]
    others = [name for name in table.column_names if name not in own]
    table = table.select([*own, *others]).replace_schema_metadata(None)
    types = [SCHEMA.field(name) for name in own] + [table.schema.field(name) for name in others]
    return table.cast(pa.schema(types))
