"""A step's output folder and its commit protocol: what a reader sees is always whole.

    shards/{id}-{attempt}.tar        samples (absent for steps that keep rows only)
    index/{id}-{attempt}.parquet     offsets of the samples in the tar
    status/{id}-{attempt}.parquet    the ledger: one row per input item, whatever became of it
    manifest/{id}.json               names the three, with sizes, hashes and counts
    job.json                         the settings that made this folder (its fingerprint)

They are written in this order, the manifest last and only if there is none, so work may be done
twice but becomes visible once. Readers trust manifests only.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import pyarrow as pa

from data_pipeline.ledger import (
    Funnel,
    Ledger,
    Outcome,
    Row,
    count_ok,
    count_reasons,
    to_parquet,
)
from data_pipeline.shards import Sample, ShardIndex, ShardWriter, read_shard
from data_pipeline.storage import Storage, StorageConfig, open_storage
from t2i.config import flatten

# Threads that read many small files: they wait for S3 together, but only contend for a local disk's.
REMOTE_READERS = 32


@dataclass(frozen=True)
class ShardManifest:
    """One committed shard: the keys of its files in the storage, their sizes, and its counts.

    ``bytes`` and ``sha256`` are by storage key; ``reasons`` is status -> reason -> count.
    ``shard_key`` and ``index_key`` are None when the step writes no samples. ``num_ok_by`` is
    column -> value -> number of ok rows, for the ledger columns that the step has counted; older
    manifests lack it.

    Raises:
        ValueError: the counts do not add up.
    """

    id: str
    shard_key: str | None
    index_key: str | None
    status_key: str
    num_in: int
    num_ok: int
    num_filtered: int
    num_failed: int
    reasons: Mapping[str, Mapping[str, int]]
    bytes: Mapping[str, int]
    sha256: Mapping[str, str]
    num_ok_by: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        total = self.num_ok + self.num_filtered + self.num_failed
        if self.num_in != total:
            raise ValueError(f"num_in is {self.num_in}, but its parts are {total}")
        for column, counts in self.num_ok_by.items():
            if sum(counts.values()) != self.num_ok:
                raise ValueError(
                    f"num_ok is {self.num_ok}, but num_ok_by.{column} are {sum(counts.values())}"
                )


@dataclass(frozen=True)
class StepOutput:
    """The output folder of one step of the pipeline. Manifests never change: they are read once."""

    storage: Storage
    known: dict[str, ShardManifest] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def open(cls, url: str, config: StorageConfig | None = None) -> StepOutput:
        """The output at ``url`` (a folder or s3://bucket/prefix); nothing is touched yet."""
        return cls(open_storage(url, config))

    @property
    def url(self) -> str:
        return self.storage.url

    @property
    def num_readers(self) -> int:
        """Threads that are worth while for reading many small files."""
        return REMOTE_READERS if self.url.startswith("s3://") else 1

    # -- reading ---------------------------------------------------------------------------

    def committed(self) -> list[str]:
        """Sorted ids of the committed shards."""
        keys = self.storage.list("manifest/")
        return [key.removeprefix("manifest/").removesuffix(".json") for key in keys]

    def manifest(self, shard_id: str) -> ShardManifest:
        """What was committed of a shard.

        Raises:
            FileNotFoundError: it is not committed.
            ValueError: the manifest is damaged.
        """
        if shard_id not in self.known:
            key = f"manifest/{shard_id}.json"
            text = self.storage.get(key)
            try:
                self.known[shard_id] = ShardManifest(**json.loads(text))
            except ValueError as error:
                raise ValueError(
                    f"{self.url}/{key}: damaged ({error}); restore it, or delete it and run the "
                    "step again"
                ) from None
        return self.known[shard_id]

    def manifests(self) -> list[ShardManifest]:
        """All committed shards, sorted by id. Raises ValueError as `manifest`."""
        shard_ids = self.committed()
        share = -(-len(shard_ids) // self.num_readers) or 1  # of a thread: few and large tasks
        shares = [shard_ids[i : i + share] for i in range(0, len(shard_ids), share)]
        with ThreadPoolExecutor(self.num_readers) as readers:
            parts = readers.map(lambda ids: [self.manifest(shard_id) for shard_id in ids], shares)
            return [manifest for part in parts for manifest in part]

    def shard_path(self, shard_id: str) -> Path:
        """A local file with the shard's tar (for S3 a cached copy).

        Raises:
            FileNotFoundError: the shard is not committed, or its tar is gone.
            ValueError: the step writes no samples, or the tar is not of the committed size.
        """
        manifest = self.manifest(shard_id)
        if manifest.shard_key is None:
            raise ValueError(f"{self.url}: shard {shard_id} holds rows only, no samples")
        path = self.storage.local(manifest.shard_key)
        size, expected = path.stat().st_size, manifest.bytes[manifest.shard_key]
        if size != expected:
            raise ValueError(
                f"{path}: {size} bytes, but {expected} were committed; restore it, or delete "
                f"manifest/{shard_id}.json of {self.url} and run the step again"
            )
        return path

    def index(self, shard_id: str) -> ShardIndex:
        """Where the shard's samples lie in its tar. ValueError when the step writes no samples."""
        manifest = self.manifest(shard_id)
        if manifest.index_key is not None:
            return ShardIndex.from_bytes(self.storage.get(manifest.index_key))
        if manifest.num_ok == 0:
            return ShardIndex((), {})
        raise ValueError(f"{self.url}: shard {shard_id} holds rows only, no samples")

    def read(self, shard_id: str) -> Iterator[Sample]:
        """The samples of a shard, in order. Raises as `shard_path`."""
        if self.manifest(shard_id).num_ok == 0:
            return
        yield from read_shard(self.shard_path(shard_id), self.index(shard_id))

    def rows(self, shard_id: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The ledger of a shard: key, status, reason, detail (strings), and the step's columns.

        ``columns``: only these of them, as far as there are; None = all.
        """
        return self.ledger(shard_id).rows(columns)

    def ledger(self, shard_id: str) -> Ledger:
        """The ledger of a shard, for reading parts of it."""
        return Ledger(self.storage.get(self.manifest(shard_id).status_key))

    def ok_keys(self, shard_id: str) -> list[str]:
        """Keys of the shard's ok rows, in order: after `data_pipeline.filter`, the kept keys."""
        rows = self.rows(shard_id)
        pairs = zip(rows["key"].to_pylist(), rows["status"].to_pylist(), strict=True)
        return [key for key, status in pairs if status == "ok"]

    def funnel(self) -> Funnel:
        """Counts by status and reason over all committed shards."""
        manifests = self.manifests()
        reasons: Counter[tuple[str, str]] = Counter()
        for manifest in manifests:
            for status, counts in manifest.reasons.items():
                reasons.update({(status, reason): num for reason, num in counts.items()})
        return Funnel(
            num_shards=len(manifests),
            num_in=sum(manifest.num_in for manifest in manifests),
            num_ok=sum(manifest.num_ok for manifest in manifests),
            num_filtered=sum(manifest.num_filtered for manifest in manifests),
            num_failed=sum(manifest.num_failed for manifest in manifests),
            reasons=dict(reasons),
        )

    def verify(self, shard_id: str) -> None:
        """Read a shard's files again and hold them against the manifest.

        Raises:
            FileNotFoundError: a file is gone.
            ValueError: a file has changed; named with its address.
        """
        for key, expected in self.manifest(shard_id).sha256.items():
            if _sha256_of_bytes(self.storage.get(key)) != expected:
                raise ValueError(f"{self.url}/{key}: content differs from what was committed")

    # -- writing ---------------------------------------------------------------------------

    def fingerprint(self) -> dict[str, Any] | None:
        """The settings that this folder was made with; None before the first run."""
        try:
            return json.loads(self.storage.get("job.json"))
        except FileNotFoundError:
            return None

    def begin(self, fingerprint: Mapping[str, Any]) -> None:
        """Store the settings of this run, or hold them against those of the committed shards.

        Raises:
            ValueError: a setting differs; names the key, both values and the ways out.
        """
        data = json.dumps(fingerprint, indent=1, sort_keys=True).encode()
        if self.storage.put_if_absent("job.json", data):
            return
        old, new = flatten(json.loads(self.storage.get("job.json"))), flatten(json.loads(data))
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if changed and not self.committed():
            self.storage.put("job.json", data)
        elif changed:
            listing = "; ".join(
                f"{key} was {_shown(old, key)}, now {_shown(new, key)}" for key in changed
            )
            raise ValueError(
                f"{self.url} was made with other settings: {listing}. Set them back, write to "
                "another folder, or delete this one to start over"
            )

    def writer(
        self,
        shard_id: str,
        column_types: Mapping[str, str] | None = None,
        counted_columns: Sequence[str] = (),
    ) -> ShardCommitter:
        """A writer of one shard; nothing is visible before its `commit`.

        ``counted_columns``: texts that all ok rows have; the manifest tells how often each comes.
        """
        return ShardCommitter(self, shard_id, column_types or {}, counted_columns)

    def remove_leftovers(self) -> int:
        """Delete files of lost attempts at shards that are committed; gives their number."""
        manifests = {manifest.id: manifest for manifest in self.manifests()}
        leftovers = [
            key
            for folder in ("shards/", "index/", "status/")
            for key in self.storage.list(folder)
            if (manifest := manifests.get(_shard_of(key))) and key not in manifest.bytes
        ]
        for key in leftovers:
            self.storage.delete(key)
        return len(leftovers)


class ShardCommitter:
    """Collects the outcomes of one shard in a scratch folder and commits them.

    A context manager; left without `commit`, it leaves nothing behind.
    """

    def __init__(
        self,
        output: StepOutput,
        shard_id: str,
        column_types: Mapping[str, str],
        counted_columns: Sequence[str],
    ) -> None:
        self.output, self.shard_id = output, shard_id
        self.attempt = uuid.uuid4().hex[:8]
        self.rows: list[Row] = []
        self.column_types, self.counted_columns = column_types, counted_columns
        self.folder = TemporaryDirectory(dir=output.storage.scratch())
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
        storage = self.output.storage
        if not storage.put_if_absent(f"manifest/{self.shard_id}.json", data):
            for key in manifest.bytes:
                storage.delete(key)
            return self.output.manifest(self.shard_id)
        return manifest

    def close(self) -> None:
        """Remove the scratch files."""
        if self.tar is not None:
            self.tar.file.close()
        self.folder.cleanup()

    def _store(self) -> ShardManifest:
        storage, sizes, hashes = self.output.storage, {}, {}
        shard_key = index_key = None
        if self.tar is not None:
            shard_key, index_key = self._key("shards", "tar"), self._key("index", "parquet")
            index = self.tar.close().to_bytes()
            path = Path(self.tar.file.name)
            sizes[shard_key], hashes[shard_key] = path.stat().st_size, _sha256_of_file(path)
            storage.put_file(shard_key, path)
            sizes[index_key], hashes[index_key] = len(index), _sha256_of_bytes(index)
            storage.put(index_key, index)
        status_key, ledger = (
            self._key("status", "parquet"),
            to_parquet(self.rows, self.column_types),
        )
        sizes[status_key], hashes[status_key] = len(ledger), _sha256_of_bytes(ledger)
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


def _shard_of(key: str) -> str:
    """``shards/00003-1f2e.tar`` -> ``00003``."""
    return key.rpartition("/")[2].rpartition("-")[0]


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "not set"


def _sha256_of_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
