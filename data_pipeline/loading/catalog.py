"""Which samples of a latents folder take part in training, known without reading any of them.

A sample takes part when its shard is committed, its key is kept (where there is a filter) and it
is in the wanted part: the first ``held_out`` samples of a dataset are one, the rest is the other.
Manifests and ledgers tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.loading.latent_shards import BadShardError, LatentShard, open_latent_shard
from data_pipeline.loading.loader_config import DatasetConfig, LoaderConfig
from data_pipeline.loading.remembered import remember
from data_pipeline.outputs.ledger import Coded, Ledger
from data_pipeline.outputs.manifest import ShardManifest
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.storage.interface import StorageConfig

BUCKET = "bucket"  # a column of the ledgers
REMEMBERED_FROM_SHARDS = 100  # manifests and ledgers of fewer are read in no time


class Catalog(Protocol):
    """One dataset of the mixture: its shards, numbered, and which of their samples take part."""

    @property
    def url(self) -> str: ...

    @property
    def vae(self) -> str | None:
        """What the latents were made with, if known."""

    @property
    def is_mirrored(self) -> bool:
        """Whether there are latents of the mirrored pictures too."""

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
        config: where counts are remembered that ledgers had to be read for.
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

    @property
    def is_mirrored(self) -> bool:
        return (self.latents.fingerprint() or {}).get("mirrored", False) is True

    def shard_name(self, shard: int) -> str:
        return f"{self.url}/{self.manifests[shard].shard_key}"

    def open_shard(self, shard: int) -> LatentShard:
        members = self.members(shard)
        return open_latent_shard(self.latents, self.manifests[shard].id, members)

    def members(self, shard: int) -> dict[str, np.ndarray]:
        """The samples of a shard that take part: bucket -> their places in the tar, int64.

        Raises:
            FileNotFoundError: the ledger is gone.
            BadShardError: the ledger is not the one that was committed.
            ValueError: the ledger knows no buckets.
        """
        buckets, takes_part = self._samples(shard)
        return {name: np.flatnonzero(takes_part & buckets.are(name)) for name in buckets.values}

    def _samples(self, shard: int) -> tuple[Coded, np.ndarray]:
        """Bucket of each sample of the tar, and which take part, bool. Raises as `members`."""
        manifest = self.manifests[shard]
        ledger = self.latents.ledger(manifest.id)
        if BUCKET not in ledger.columns:
            raise ValueError(
                f"{self.latents.url}: the ledger of shard {manifest.id} has no column {BUCKET}; "
                "make the folder with python -m data_pipeline.latents"
            )
        status, bucket = ledger.coded("status", BUCKET)
        is_ok = status.are("ok")
        buckets = bucket.of(is_ok)
        self._require_committed(manifest, buckets.counts())
        numbers = self.before[shard] + np.arange(len(buckets.codes))
        takes_part = (numbers >= self.part.start) & (numbers < self.part.stop)
        if self.kept is not None:
            takes_part &= are_kept(ledger, self.kept.ledger(manifest.id))[is_ok]
        return buckets, takes_part

    def counts(self) -> dict[str, np.ndarray]:
        """How many samples take part: bucket -> int64 (num_shards,). Raises as `members`.

        Manifests tell it of most shards. The ledgers of the others are read; what many of them say
        is remembered under the hashes of their contents.
        """
        told = [self._told_sizes(shard) for shard in range(len(self.manifests))]
        untold = [shard for shard, of_shard in enumerate(told) if of_shard is None]
        if len(untold) < REMEMBERED_FROM_SHARDS:
            read = self._read_sizes(untold)
        else:
            facts = [repr(self.part), *(self._facts(shard) for shard in untold)]
            read = remember(self.config, "sizes", facts, lambda: self._read_sizes(untold))
        found = dict(zip(untold, read, strict=True))
        sizes = [found[n] if of_shard is None else of_shard for n, of_shard in enumerate(told)]
        names = sorted({name for of_shard in sizes for name in of_shard})
        return {n: np.array([of_shard.get(n, 0) for of_shard in sizes], np.int64) for n in names}

    @property
    def num_samples(self) -> int:
        """All samples of the folder, whether or not they take part."""
        return sum(manifest.num_ok for manifest in self.manifests)

    def _told_sizes(self, shard: int) -> Mapping[str, int] | None:
        """Bucket -> number of samples that take part, by the manifests; None if they cannot tell."""
        manifest, first = self.manifests[shard], self.before[shard]
        last = first + manifest.num_ok
        num_in_part = min(last, self.part.stop) - max(first, self.part.start)
        if num_in_part <= 0:
            return {}
        is_whole = self.kept is None and num_in_part == manifest.num_ok
        return manifest.num_ok_by.get(BUCKET) if is_whole else None

    def _read_sizes(self, shards: Sequence[int]) -> list[dict[str, int]]:
        """The same of these shards, by their ledgers."""
        with ThreadPoolExecutor(self.latents.num_readers) as readers:
            samples = readers.map(self._samples, shards)
            return [buckets.of(takes_part).counts() for buckets, takes_part in samples]

    def _facts(self, shard: int) -> str:
        """All that the shard's sizes depend on, but for the part."""
        ledgers = [of_step[shard] for of_step in (self.manifests, self.kept_manifests) if of_step]
        hashes = [ledger.sha256[ledger.status_key] for ledger in ledgers]
        return " ".join([str(self.before[shard]), *hashes])

    def _require_committed(self, manifest: ShardManifest, found: Mapping[str, int]) -> None:
        """Hold bucket -> number of ok rows against the manifest, if it tells."""
        if manifest.num_ok_by.get(BUCKET, found) != found:
            raise BadShardError(
                f"{self.url}/{manifest.status_key}: changed since it was committed (buckets "
                f"{found}, not {manifest.num_ok_by[BUCKET]}); restore it, or make the shard again"
            )


def are_kept(ledger: Ledger, kept: Ledger) -> np.ndarray:
    """Which rows of a ledger have keys that are ok in the filter's, bool (num_rows,)."""
    (status,) = kept.coded("status")
    is_ok = status.are("ok")
    if ledger.surely_has_keys_of(kept):
        return is_ok
    keys, keys_of_filter = ledger.rows(["key"])["key"], kept.rows(["key"])["key"]
    kept_keys = keys_of_filter.filter(pa.array(is_ok)).combine_chunks()
    return pc.is_in(keys, value_set=kept_keys).to_numpy()


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
    rows = remember(config, "manifests", facts, lambda: [vars(m) for m in output.manifests()])
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
