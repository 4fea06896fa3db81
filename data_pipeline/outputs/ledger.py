"""The ledger of a shard: one row per input item, whatever became of it, and the counts of many."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.outputs.shards import Sample

Status = Literal["ok", "filtered", "failed"]
LEDGER_COLUMNS = ("key", "status", "reason", "detail")
NUM_REASONS_SHOWN = 8


@dataclass(frozen=True)
class Row:
    """What became of one input item. There is exactly one per item, always.

    ``reason`` says why it is not ok, in a few words that can be counted ("http 404");
    ``detail`` is free text (an error's message); ``columns`` are further ledger columns.
    """

    key: str
    status: Status
    reason: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    detail: str = ""


@dataclass(frozen=True)
class Outcome:
    """An item's row and, for an ok one that has output, its sample under the same key."""

    row: Row
    sample: Sample | None = None


@dataclass(frozen=True)
class Funnel:
    """Counts over committed shards; ``reasons`` is (status, reason) -> count, ok left out."""

    num_shards: int
    num_in: int
    num_ok: int
    num_filtered: int
    num_failed: int
    reasons: Mapping[tuple[str, str], int]

    def __str__(self) -> str:
        parts = [f"in {self.num_in}", f"ok {self.num_ok}"]
        for status, num in (("filtered", self.num_filtered), ("failed", self.num_failed)):
            counts = Counter({r: n for (s, r), n in self.reasons.items() if s == status})
            listing = ", ".join(
                f"{reason}: {count}" for reason, count in counts.most_common(NUM_REASONS_SHOWN)
            )
            num_more = len(counts) - NUM_REASONS_SHOWN
            more = f", and {num_more} more reasons" if num_more > 0 else ""
            parts.append(f"{status} {num}" + (f" ({listing}{more})" if num else ""))
        return ", ".join(parts)


@dataclass(frozen=True)
class Coded:
    """A column of few texts: ``values[code]`` for each row; null is -1.

    Attributes:
        values: each once.
        codes: int32 (num_rows,).
    """

    values: list[str]
    codes: np.ndarray

    def are(self, value: str) -> np.ndarray:
        """Which rows have this value, bool (num_rows,)."""
        code = self.values.index(value) if value in self.values else len(self.values)
        return np.asarray(self.codes == code)

    def of(self, rows: np.ndarray) -> Coded:
        """Of these rows alone (a mask)."""
        return Coded(self.values, self.codes[rows])

    def counts(self) -> dict[str, int]:
        """Value -> number of rows, of values that there are."""
        numbers = np.bincount(self.codes + 1, minlength=len(self.values) + 1)[1:].tolist()
        return {value: number for value, number in zip(self.values, numbers, strict=True) if number}


class Ledger:
    """A stored ledger, of which only the columns that are asked for are read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.metadata = pq.read_metadata(pa.BufferReader(data))
        self.columns = tuple(self.metadata.schema.names)

    def rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """These columns, as far as there are; None = all."""
        return self._read(columns, coded=())

    def coded(self, *columns: str) -> list[Coded]:
        """These columns of few texts, which are not copied for each row."""
        table = self._read(columns, coded=columns).unify_dictionaries()
        chunks = [table[column].combine_chunks() for column in columns]
        return [
            Coded(chunk.dictionary.to_pylist(), chunk.indices.fill_null(-1).to_numpy())
            for chunk in chunks
        ]

    def surely_has_keys_of(self, other: Ledger) -> bool:
        """Whether the stored keys are alike to the byte, and so equal and in the same order.

        Nothing is decoded. False says nothing.
        """
        return list(self._stored_keys()) == list(other._stored_keys())

    def _read(self, columns: Sequence[str] | None, coded: Sequence[str]) -> pa.Table:
        source = pa.BufferReader(self.data)
        file = pq.ParquetFile(source, metadata=self.metadata, read_dictionary=coded)
        return file.read(columns, use_threads=False)

    def _stored_keys(self) -> Iterator[tuple[str, bytes]]:
        """How the key column is compressed and its pages, by row group."""
        for group in range(self.metadata.num_row_groups):
            column = self.metadata.row_group(group).column(LEDGER_COLUMNS.index("key"))
            start = column.dictionary_page_offset or column.data_page_offset
            yield column.compression, self.data[start : start + column.total_compressed_size]


def to_parquet(rows: Sequence[Row], column_types: Mapping[str, str]) -> bytes:
    """The ledger of a shard: key, status, reason, detail (strings) and the columns of the rows.

    ``column_types`` gives Arrow type names ("float32") to columns; others are inferred.

    Raises:
        ValueError: two rows share a key, or a value does not fit its column.
    """
    repeated = [key for key, num in Counter(row.key for row in rows).items() if num > 1]
    if repeated:
        raise ValueError(f"key {repeated[0]} has more than one row")
    columns = {
        name: pa.array([getattr(row, name) for row in rows], pa.string()) for name in LEDGER_COLUMNS
    }
    types = {name: pa.type_for_alias(kind) for name, kind in column_types.items()}
    untyped = dict.fromkeys(name for row in rows for name in row.columns)
    for name in dict.fromkeys([*types, *untyped]):
        assert name not in LEDGER_COLUMNS, f"column name {name} is taken by the ledger"
        columns[name] = _column(name, rows, types.get(name))
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def count_reasons(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """status -> reason -> count, over the rows that are not ok."""
    reasons: dict[str, dict[str, int]] = {}
    for row in rows:
        if row.status != "ok":
            counts = reasons.setdefault(row.status, {})
            counts[row.reason] = counts.get(row.reason, 0) + 1
    return reasons


def count_ok(rows: Sequence[Row], column: str) -> dict[str, int]:
    """Value of the column -> number of ok rows, all of which have one."""
    return dict(Counter(row.columns[column] for row in rows if row.status == "ok"))


def _column(name: str, rows: Sequence[Row], kind: pa.DataType | None) -> pa.Array:
    try:
        return pa.array([row.columns.get(name) for row in rows], kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"ledger column {name}: {error}") from None
