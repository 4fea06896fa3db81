"""Proves that COYO metadata reads the same however it is cut into files, and finds duplicates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.sources.coyo import (
    FLOAT_COLUMNS,
    INT_COLUMNS,
    SCHEMA,
    CoyoMetadata,
    find_duplicates,
)
from data_pipeline.storage.interface import StorageConfig
from data_pipeline.storage.stores import open_storage

DEDUPLICATE = ("url", "image_phash")


def table(urls: list[str | None], phashes: list[str | None] | None = None) -> pa.Table:
    num = len(urls)
    columns: dict[str, object] = {name: np.arange(num) for name in INT_COLUMNS}
    columns |= {name: np.arange(num) / 7 for name in FLOAT_COLUMNS}
    columns |= {"id": np.arange(num) << 33, "url": urls, "text": [f"text {i}" for i in range(num)]}
    columns["image_phash"] = phashes or [f"{i:016x}" for i in range(num)]
    return pa.table(
        {name: pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names}
    )


def narrow(rows: pa.Table) -> pa.Table:
    kinds = dict.fromkeys(INT_COLUMNS, pa.int32()) | dict.fromkeys(FLOAT_COLUMNS, pa.float32())
    return rows.cast(pa.schema([(f.name, kinds.get(f.name, f.type)) for f in SCHEMA]))


def write(path: Path, rows: pa.Table, group_size: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path, row_group_size=group_size)
    return path


def test_any_range_of_rows_is_read_across_files_and_row_groups(tmp_path: Path) -> None:
    rows = table([f"http://a.org/{i}" for i in range(20)])
    write(tmp_path / "part-0.parquet", rows.slice(0, 7))
    write(tmp_path / "part-1.parquet", rows.slice(7, 1))
    write(tmp_path / "part-2.parquet", rows.slice(8))
    metadata = CoyoMetadata.open(str(tmp_path))
    assert metadata.num_rows == 20
    for start, stop in [(0, 20), (0, 1), (6, 9), (7, 8), (8, 20), (13, 19)]:
        assert metadata.read(start, stop).equals(rows.slice(start, stop - start))


def test_narrow_and_wide_types_read_as_the_same_values(tmp_path: Path) -> None:
    rows = narrow(table(["http://a.org/0", None]))
    write(tmp_path / "narrow.parquet", rows)
    write(tmp_path / "wide.parquet", rows.cast(SCHEMA))
    read = [
        CoyoMetadata.open(str(tmp_path / n)).read(0, 2) for n in ("narrow.parquet", "wide.parquet")
    ]
    assert read[0].schema.equals(SCHEMA)
    assert read[0].equals(read[1])


def test_columns_of_nulls_only_and_further_columns_are_kept(tmp_path: Path) -> None:
    rows = table(["http://a.org/0"]).drop_columns(["watermark_score"])
    rows = rows.append_column("watermark_score", pa.nulls(1))
    path = write(tmp_path / "m.parquet", rows.append_column("licence", pa.array(["CC0"])))
    read = CoyoMetadata.open(str(path)).read(0, 1)
    assert read.schema.names == [*SCHEMA.names, "licence"]
    assert read.to_pylist()[0]["watermark_score"] is None
    assert read.to_pylist()[0]["licence"] == "CC0"


def test_the_same_rows_are_read_from_s3(
    tmp_path: Path, s3_url: str, s3_config: StorageConfig
) -> None:
    rows = table(["http://a.org/0", "http://a.org/1"])
    storage = open_storage(s3_url, s3_config)
    storage.put_file("coyo/m.parquet", write(tmp_path / "m.parquet", rows))
    for url in (f"{s3_url}/coyo", f"{s3_url}/coyo/m.parquet"):
        assert CoyoMetadata.open(url, s3_config).read(0, 2).equals(rows)


def test_metadata_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such parquet file"):
        CoyoMetadata.open(str(tmp_path / "nothing.parquet"))
    lacking = write(tmp_path / "lacking.parquet", table(["u"]).drop_columns(["image_phash"]))
    with pytest.raises(ValueError, match=r"lacking\.parquet.*lacks image_phash"):
        CoyoMetadata.open(str(lacking))
    columns = table(["u"]).drop_columns(["width"]).append_column("width", pa.array(["wide"]))
    with pytest.raises(ValueError, match="width is string"):
        CoyoMetadata.open(str(write(tmp_path / "wrong.parquet", columns)))


def test_the_first_of_equal_urls_and_of_equal_phashes_wins(tmp_path: Path) -> None:
    urls = ["a", "b", "a", "c", None, None, "d", "", "b"]
    phashes = ["0", "1", "2", "1", None, "5", "2", None, "8"]
    write(tmp_path / "part-0.parquet", table(urls[:4], phashes[:4]))
    write(tmp_path / "part-1.parquet", table(urls[4:], phashes[4:]))
    metadata = CoyoMetadata.open(str(tmp_path))
    assert find_duplicates(metadata, DEDUPLICATE, 9).nonzero()[0].tolist() == [2, 3, 6, 8]
    assert find_duplicates(metadata, ("url",), 9).nonzero()[0].tolist() == [2, 8]
    assert find_duplicates(metadata, (), 9).sum() == 0


def test_duplicates_among_the_first_rows_do_not_depend_on_later_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    urls = [f"u{i}" for i in rng.integers(0, 60, 100)]
    metadata = CoyoMetadata.open(str(write(tmp_path / "m.parquet", table(urls), group_size=7)))
    seen: set[str] = set()
    expected = [url in seen or bool(seen.add(url)) for url in urls]
    for num_rows in (1, 50, 100):
        found = find_duplicates(metadata, DEDUPLICATE, num_rows)
        assert found.tolist() == expected[:num_rows]
