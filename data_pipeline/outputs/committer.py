"""The writer of one shard: tar, index and ledger first, then the manifest, if there is none yet."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from data_pipeline.outputs.ledger import (
    Outcome,
    Row,
    count_ok,
    count_reasons,
    to_parquet,
)
from data_pipeline.outputs.manifest import ShardManifest, read_manifest, sha256_of_bytes
from data_pipeline.outputs.shards import ShardWriter
from data_pipeline.storage.interface import Storage


class ShardCommitter:
    """Collects the outcomes of one shard in a scratch folder and commits them.

    A context manager; left without `commit`, it leaves nothing behind.
    """

    def __init__(
        self,
        storage: Storage,
        shard_id: str,
        column_types: Mapping[str, str],
        counted_columns: Sequence[str],
    ) -> None:
        self.storage, self.shard_id = storage, shard_id
        self.attempt = uuid.uuid4().hex[:8]
        self.rows: list[Row] = []
        self.column_types, self.counted_columns = column_types, counted_columns
        self.folder = TemporaryDirectory(dir=storage.scratch())
        self.tar: ShardWriter | None = None

    def __enter__(self) -> ShardCommitter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, outcome: Outcome) -> None:
        """Append one outcome. Keys must differ: a repeated key is refused at `commit`."""
        row, sample = outcome.row, outcome.sample
        if sample is not None:
            assert row.status == "ok", f"{row.key} is {row.status} but has a sample"
            assert row.key == sample.key, f"row {row.key} has the sample of {sample.key}"
            if self.tar is None:
                self.tar = ShardWriter(Path(self.folder.name) / "shard.tar")
            self.tar.add(sample)
        self.rows.append(row)

    def commit(self) -> ShardManifest:
        """Make the shard visible; when another writer was first, its manifest is returned.

        Raises:
            ValueError: two rows share a key, or a column does not fit its type.
        """
        manifest = self._store()
        data = json.dumps(asdict(manifest), indent=1).encode()
        storage = self.storage
        if not storage.put_if_absent(f"manifest/{self.shard_id}.json", data):
            for key in manifest.bytes:
                storage.delete(key)
            return read_manifest(storage, self.shard_id)
        return manifest

    def close(self) -> None:
        """Remove the scratch files."""
        if self.tar is not None:
            self.tar.file.close()
        self.folder.cleanup()

    def _store(self) -> ShardManifest:
        storage, sizes, hashes = self.storage, {}, {}
        shard_key = index_key = None
        if self.tar is not None:
            shard_key, index_key = self._key("shards", "tar"), self._key("index", "parquet")
            index = self.tar.close().to_bytes()
            path = Path(self.tar.file.name)
            sizes[shard_key], hashes[shard_key] = path.stat().st_size, _sha256_of_file(path)
            storage.put_file(shard_key, path)
            sizes[index_key], hashes[index_key] = len(index), sha256_of_bytes(index)
            storage.put(index_key, index)
        status_key, ledger = (
            self._key("status", "parquet"),
            to_parquet(self.rows, self.column_types),
        )
        sizes[status_key], hashes[status_key] = len(ledger), sha256_of_bytes(ledger)
        storage.put(status_key, ledger)
        num = Counter(row.status for row in self.rows)
        return ShardManifest(
            id=self.shard_id,
            shard_key=shard_key,
            index_key=index_key,
            status_key=status_key,
            num_in=len(self.rows),
            num_ok=num["ok"],
            num_filtered=num["filtered"],
            num_failed=num["failed"],
            reasons=count_reasons(self.rows),
            bytes=sizes,
            sha256=hashes,
            num_ok_by={name: count_ok(self.rows, name) for name in self.counted_columns},
        )

    def _key(self, folder: str, extension: str) -> str:
        return f"{folder}/{self.shard_id}-{self.attempt}.{extension}"


def _sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
