"""Which samples of a latents folder take part in training, known without reading any of them.

A sample takes part when its shard is committed, its key is kept (where there is a filter) and it
is in the wanted part: the first ``held_out`` samples of a dataset are one, the rest is the other.
Manifests and ledgers tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import pyarrow.compute as pc

from data_pipeline.latent_shards import LatentShard, open_latent_shard
from data_pipeline.loader_config import DatasetConfig, LoaderConfig
from data_pipeline.manifest import ShardManifest, StepOutput
from data_pipeline.remembered import remember
from data_pipeline.storage import StorageConfig

LEDGER_READERS = 16
REMEMBERED_FROM_SHARDS = 100  # manifests and ledgers of fewer are read in no time


class Catalog(Protocol):
    """One dataset of the mixture: its shards, numbered, and which of their samples take part."""

    @property
    def url(self) -> str: ...

    @property
    def vae(self) -> str | None:
        """What the latents were made with, if known."""

    @property
    def num_samples(self) -> int:
        """All samples, whether or not they take part."""

    def counts(self) -> dict[str, np.ndarray]:
        """How many samples take part: bucket -> int64 (num_shards,)."""

    def shard_name(self, shard: int) -> str:
        """The address of a shard's file."""

    def open_shard(self, shard: int) -> LatentShard:
        """Raises FileNotFoundError or `BadShardError`: it is gone, cut or changed."""


@dataclass(frozen=True)
class LatentsCatalog:
    """The output of `data_pipeline.latents`, perhaps filtered. Made by `open_latents`.

    Attributes:
        latents, kept: the outputs of the steps; ``kept`` is None without a filter.
        manifests: of the committed shards of the latents, sorted by id.
        kept_manifests: of the same shards of the filter; empty without one.
        before: number of samples in the shards before each.
        part: which samples take part, as numbers within the dataset.
        config: where counts are remembered.
    """

    latents: StepOutput
    kept: StepOutput | None
    manifests: Sequence[ShardManifest]
    kept_manifests: Sequence[ShardManifest]
    before: Sequence[int]
    part: range
    config: StorageConfig

    @property
    def url(self) -> str:
        return self.latents.url

    @property
    def vae(self) -> str | None:
        return (self.latents.fingerprint() or {}).get("vae")

    def shard_name(self, shard: int) -> str:
        return f"{self.url}/{self.manifests[shard].shard_key}"

    def open_shard(self, shard: int) -> LatentShard:
        members = self.members(shard)
        return open_latent_shard(self.latents, self.manifests[shard].id, members)

    def members(self, shard: int) -> dict[str, np.ndarray]:
        """The samples of a shard that take part: bucket -> their places in the tar, int64.

        Raises:
            FileNotFoundError: the ledger is gone.
            ValueError: the ledger knows no buckets.
        """
        shard_id = self.manifests[shard].id
        keys = [] if self.kept is None else ["key"]
        rows = self.latents.rows(shard_id, ["status", "bucket", *keys])
        if "bucket" not in rows.column_names:
            raise ValueError(
                f"{self.latents.url}: the ledger of shard {shard_id} has no column bucket; make "
                "the folder with python -m data_pipeline.latents"
            )
        rows = rows.filter(pc.equal(rows["status"], "ok"))
        numbers = self.before[shard] + np.arange(len(rows))
        wanted = (numbers >= self.part.start) & (numbers < self.part.stop)
        if self.kept is not None:
            kept = self.kept.rows(shard_id, ["key", "status"])
            kept_keys = kept.filter(pc.equal(kept["status"], "ok"))["key"].combine_chunks()
            wanted &= pc.is_in(rows["key"], value_set=kept_keys).to_numpy()
        return {
            name: np.flatnonzero(wanted & pc.equal(rows["bucket"], name).to_numpy())
            for name in pc.unique(rows["bucket"]).to_pylist()
        }

    def counts(self) -> dict[str, np.ndarray]:
        """How many samples take part: bucket -> int64 (num_shards,). Raises as `members`.

        Reads every ledger; what many of them say is remembered under the hashes of their contents.
        """
        if len(self.manifests) < REMEMBERED_FROM_SHARDS:
            counts = self._count()
        else:
            ledgers = (*self.manifests, *self.kept_manifests)
            facts = [repr(self.part), *(ledger.sha256[ledger.status_key] for ledger in ledgers)]
            counts = remember(self.config, "counts", facts, self._count)
        return {name: np.array(of_bucket, np.int64) for name, of_bucket in counts.items()}

    @property
    def num_samples(self) -> int:
        """All samples of the folder, whether or not they take part."""
        return sum(manifest.num_ok for manifest in self.manifests)

    def _count(self) -> dict[str, list[int]]:
        with ThreadPoolExecutor(LEDGER_READERS) as readers:
            sizes = list(readers.map(self._sizes, range(len(self.manifests))))
        names = sorted({name for of_shard in sizes for name in of_shard})
        return {name: [of_shard.get(name, 0) for of_shard in sizes] for name in names}

    def _sizes(self, shard: int) -> dict[str, int]:
        return {name: len(places) for name, places in self.members(shard).items()}


def open_latents(
    dataset: DatasetConfig, loader: LoaderConfig, storage: StorageConfig
) -> LatentsCatalog:
    """Look at a folder of latents; reads the manifests. The held-out part knows no filter.

    Raises:
        FileNotFoundError: there are no latents.
        ValueError: the filter has not seen all shards.
    """
    latents = StepOutput.open(dataset.path, storage)
    manifests = read_manifests(latents, storage)
    if not manifests:
        raise FileNotFoundError(
            f"data_pipeline.loader.datasets: {latents.url} has no finished shards and "
            "no plain tars; run python -m data_pipeline.latents first"
        )
    before = np.cumsum([0, *(manifest.num_ok for manifest in manifests)])
    part = part_of(loader, int(before[-1]))
    kept, kept_manifests = None, []
    if dataset.kept is not None and loader.part == "training":
        kept = StepOutput.open(dataset.kept, storage)
        filtered = {manifest.id: manifest for manifest in read_manifests(kept, storage)}
        _require_filtered(kept, filtered, manifests)
        kept_manifests = [filtered[manifest.id] for manifest in manifests]
    return LatentsCatalog(
        latents, kept, manifests, kept_manifests, before[:-1].tolist(), part, storage
    )


def part_of(loader: LoaderConfig, num_samples: int) -> range:
    """Which samples of a dataset take part."""
    head = min(loader.held_out, num_samples)
    return range(head) if loader.part == "held_out" else range(head, num_samples)


def read_manifests(output: StepOutput, config: StorageConfig) -> list[ShardManifest]:
    """All committed shards, sorted by id; many are remembered until the listing tells a change."""
    versions = output.storage.versions("manifest/")
    if len(versions) < REMEMBERED_FROM_SHARDS:
        return output.manifests()
    facts = [output.url, *(f"{key} {version}" for key, version in sorted(versions.items()))]
    rows = remember(config, "manifests", facts, lambda: [asdict(m) for m in output.manifests()])
    manifests = [ShardManifest(**row) for row in rows]
    output.known.update({manifest.id: manifest for manifest in manifests})
    return manifests


def _require_filtered(
    kept: StepOutput, filtered: Mapping[str, ShardManifest], manifests: Sequence[ShardManifest]
) -> None:
    missing = [manifest.id for manifest in manifests if manifest.id not in filtered]
    if missing:
        raise ValueError(
            f"data_pipeline.loader.datasets: {kept.url} lacks {len(missing)} of {len(manifests)} "
            f"shards, such as {missing[0]}; run python -m data_pipeline.filter on their images"
        )
