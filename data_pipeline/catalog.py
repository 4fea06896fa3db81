"""Which samples of a latents folder take part in training, known without reading any of them.

A sample takes part when its shard is committed, its key is kept (where there is a filter) and it
is in the wanted part: the first ``held_out`` samples of a dataset are one, the rest is the other.
Manifests and ledgers tell.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from data_pipeline.loader_config import DatasetConfig, LoaderConfig
from data_pipeline.manifest import ShardManifest, StepOutput
from data_pipeline.storage import StorageConfig

LEDGER_READERS = 4
REMEMBERED_FROM_SHARDS = 100  # the ledgers of fewer are read in no time


@dataclass(frozen=True)
class Catalog:
    """One dataset of the mixture. Made by `open_catalog`.

    Attributes:
        latents, kept: the outputs of the steps; ``kept`` is None without a filter.
        manifests: of the committed shards of the latents, sorted by id.
        kept_manifests: of the same shards of the filter; empty without one.
        before: number of samples in the shards before each.
        part: which samples take part, as numbers within the dataset.
    """

    latents: StepOutput
    kept: StepOutput | None
    manifests: Sequence[ShardManifest]
    kept_manifests: Sequence[ShardManifest]
    before: Sequence[int]
    part: range

    def members(self, shard: int) -> dict[str, np.ndarray]:
        """The samples of a shard that take part: bucket -> their places in the tar, int64.

        Raises:
            FileNotFoundError: the ledger is gone.
            ValueError: the ledger knows no buckets.
        """
        shard_id = self.manifests[shard].id
        rows = self.latents.rows(shard_id)
        if "bucket" not in rows.column_names:
            raise ValueError(
                f"{self.latents.url}: the ledger of shard {shard_id} has no column bucket; make "
                "the folder with python -m data_pipeline.latents"
            )
        rows = rows.filter(pc.equal(rows["status"], "ok"))
        numbers = self.before[shard] + np.arange(len(rows))
        wanted = (numbers >= self.part.start) & (numbers < self.part.stop)
        if self.kept is not None:
            kept = self.kept.rows(shard_id)
            kept_keys = kept.filter(pc.equal(kept["status"], "ok"))["key"].combine_chunks()
            wanted &= pc.is_in(rows["key"], value_set=kept_keys).to_numpy()
        return {
            name: np.flatnonzero(wanted & pc.equal(rows["bucket"], name).to_numpy())
            for name in pc.unique(rows["bucket"]).to_pylist()
        }

    def counts(self, storage: StorageConfig) -> dict[str, np.ndarray]:
        """How many samples take part: bucket -> int64 (num_shards,). Raises as `members`.

        Reads every ledger; what many of them say is remembered in the cache folder, under the
        hash of their contents.
        """
        if len(self.manifests) < REMEMBERED_FROM_SHARDS:
            return self._count()
        folder = Path(storage.cache_folder).expanduser() / "counts"
        path = folder / f"{self._content_hash()}.json"
        if not path.is_file():
            _store(path, self._count())
        counts = json.loads(path.read_text())
        return {name: np.array(of_bucket, np.int64) for name, of_bucket in counts.items()}

    @property
    def num_samples(self) -> int:
        """All samples of the folder, whether or not they take part."""
        return sum(manifest.num_ok for manifest in self.manifests)

    def _count(self) -> dict[str, np.ndarray]:
        with ThreadPoolExecutor(LEDGER_READERS) as readers:
            sizes = list(readers.map(self._sizes, range(len(self.manifests))))
        names = sorted({name for of_shard in sizes for name in of_shard})
        return {name: np.array([s.get(name, 0) for s in sizes], np.int64) for name in names}

    def _sizes(self, shard: int) -> dict[str, int]:
        return {name: len(places) for name, places in self.members(shard).items()}

    def _content_hash(self) -> str:
        total = hashlib.sha256(repr(self.part).encode())
        for manifest in (*self.manifests, *self.kept_manifests):
            total.update(manifest.sha256[manifest.status_key].encode())
        return total.hexdigest()[:32]


def open_catalog(dataset: DatasetConfig, loader: LoaderConfig, storage: StorageConfig) -> Catalog:
    """Look at a dataset of the mixture; reads the manifests. The held-out part knows no filter.

    Raises:
        FileNotFoundError: there are no latents.
        ValueError: the filter has not seen all shards.
    """
    latents = StepOutput.open(dataset.path, storage)
    manifests = latents.manifests()
    if not manifests:
        raise FileNotFoundError(
            f"data_pipeline.loader.datasets: {latents.url} has no finished shards; "
            "run python -m data_pipeline.latents first"
        )
    before = np.cumsum([0, *(manifest.num_ok for manifest in manifests)])
    head = min(loader.held_out, int(before[-1]))
    part = range(head) if loader.part == "held_out" else range(head, int(before[-1]))
    kept, kept_manifests = None, []
    if dataset.kept is not None and loader.part == "training":
        kept = StepOutput.open(dataset.kept, storage)
        _require_filtered(kept, manifests)
        kept_manifests = [kept.manifest(manifest.id) for manifest in manifests]
    return Catalog(latents, kept, manifests, kept_manifests, before[:-1].tolist(), part)


def _require_filtered(kept: StepOutput, manifests: Sequence[ShardManifest]) -> None:
    filtered = set(kept.committed())
    missing = [manifest.id for manifest in manifests if manifest.id not in filtered]
    if missing:
        raise ValueError(
            f"data_pipeline.loader.datasets: {kept.url} lacks {len(missing)} of {len(manifests)} "
            f"shards, such as {missing[0]}; run python -m data_pipeline.filter on their images"
        )


def _store(path: Path, counts: Mapping[str, np.ndarray]) -> None:
    """Write aside and rename, so that processes which start together never read half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w") as file:
        json.dump({name: of_bucket.tolist() for name, of_bucket in counts.items()}, file)
    os.replace(aside, path)
