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

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.outputs.committer import ShardCommitter
from data_pipeline.outputs.ledger import (
    Funnel,
    Ledger,
)
from data_pipeline.outputs.manifest import ShardManifest, read_manifest, sha256_of_bytes
from data_pipeline.outputs.shards import Sample, ShardIndex, read_shard
from data_pipeline.storage.interface import Storage, StorageConfig
from data_pipeline.storage.stores import open_storage
from t2i.config import flatten

# Threads that read many small files: they wait for S3 together, but only contend for a local disk's.
REMOTE_READERS = 32


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
            self.known[shard_id] = read_manifest(self.storage, shard_id)
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
            if sha256_of_bytes(self.storage.get(key)) != expected:
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
        return ShardCommitter(self.storage, shard_id, column_types or {}, counted_columns)

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


def _shard_of(key: str) -> str:
    """``shards/00003-1f2e.tar`` -> ``00003``."""
    return key.rpartition("/")[2].rpartition("-")[0]


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "not set"
