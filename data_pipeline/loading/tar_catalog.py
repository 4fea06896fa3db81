"""Plain webdataset tars of others as a dataset: no manifests, no index but the one made here.

Each sample of a tar must hold

    KEY.npy, KEY.moments.npy, KEY.npz or KEY.moments.npz    float16 (2C, h, w)
    KEY.json or KEY.txt                                     captions, see `latent_shards.parse_facts`

and the same two parts throughout a tar; other parts are ignored. All tars below the folder are
read, in the order of their names. On first use each is read once from end to end and gets an index
(NAME.tar.index.parquet: offsets, and the resolution bucket of each sample), beside it or, where
nothing can be written, in the cache folder. It is made again when the tar's size, date or ETag
changes. A tar that cannot be indexed stops the run whatever the policy, because it is not known
what it held.
"""

from __future__ import annotations

import errno
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.loading.catalog import REMEMBERED_FROM_SHARDS, part_of
from data_pipeline.loading.latent_shards import BadShardError, LatentShard
from data_pipeline.loading.loader_config import DatasetConfig, LoaderConfig
from data_pipeline.loading.remembered import remember
from data_pipeline.outputs.shards import ShardIndex, index_tar
from data_pipeline.storage.interface import Storage, StorageConfig
from data_pipeline.storage.local import LocalStorage
from data_pipeline.storage.stores import open_storage

MOMENTS_PARTS = ("npy", "moments.npy", "npz", "moments.npz")
FACTS_PARTS = ("json", "txt")
INDEXERS = 4
PIXELS_PER_LATENT = 8  # only in the names of buckets
VERSION_KEY = b"version of the tar"
NO_WRITING = (errno.EACCES, errno.EPERM, errno.EROFS)
NEEDED = (
    f"each sample needs moments ({' or '.join(f'KEY.{part}' for part in MOMENTS_PARTS)}, float16 "
    f"(2C, h, w)) and captions ({' or '.join(f'KEY.{part}' for part in FACTS_PARTS)}): write the "
    "tar so, move it out of the folder, or make latents with python -m data_pipeline.latents"
)


@dataclass(frozen=True)
class TarCatalog:
    """A folder of tars. Made by `open_tars`.

    Attributes:
        keys: of the tars, sorted.
        versions: of their contents.
        sizes: of each tar: bucket -> number of samples.
        before: number of samples in the tars before each.
        part: which samples take part, as numbers within the dataset.
    """

    storage: Storage
    config: StorageConfig
    keys: Sequence[str]
    versions: Sequence[str]
    sizes: Sequence[dict[str, int]]
    before: Sequence[int]
    part: range
    vae: str | None = None

    @property
    def url(self) -> str:
        return self.storage.url

    @property
    def is_mirrored(self) -> bool:
        return False

    @property
    def num_samples(self) -> int:
        """All samples, whether or not they take part."""
        return sum(sum(of_tar.values()) for of_tar in self.sizes)

    def counts(self) -> dict[str, np.ndarray]:
        """How many samples take part: bucket -> int64 (num_shards,)."""
        counts = [self._taking_part(shard) for shard in range(len(self.keys))]
        names = sorted({name for of_tar in counts for name in of_tar})
        return {name: np.array([c.get(name, 0) for c in counts], np.int64) for name in names}

    def shard_name(self, shard: int) -> str:
        return f"{self.url}/{self.keys[shard]}"

    def open_shard(self, shard: int) -> LatentShard:
        """Raises FileNotFoundError or `BadShardError`: the tar is gone, cut or changed."""
        key, version = self.keys[shard], self.versions[shard]
        path = self.storage.local(key, version)
        index = load_index(self.storage, self.config, key, version)
        if index is None or self.storage.versions(key).get(key) != version:
            raise BadShardError(
                f"{self.shard_name(shard)}: cut or changed since the run began; restore it, or "
                "start again to have it indexed again"
            )
        return open_tar(path, index.offsets, self._members(shard, index))

    def _taking_part(self, shard: int) -> dict[str, int]:
        size = sum(self.sizes[shard].values())
        first, last = self.before[shard], self.before[shard] + size - 1
        if size == 0 or (first in self.part and last in self.part):
            return self.sizes[shard]
        if last < self.part.start or first >= self.part.stop:
            return {}
        index = load_index(self.storage, self.config, self.keys[shard], self.versions[shard])
        assert index is not None, "it was there a moment ago"
        return {name: len(places) for name, places in self._members(shard, index).items()}

    def _members(self, shard: int, index: TarIndex) -> dict[str, np.ndarray]:
        numbers = self.before[shard] + np.arange(len(index.buckets))
        wanted = (numbers >= self.part.start) & (numbers < self.part.stop)
        buckets = np.array(index.buckets)
        names = sorted(set(index.buckets))
        return {name: np.flatnonzero(wanted & (buckets == name)) for name in names}


def open_tars(
    dataset: DatasetConfig, loader: LoaderConfig, storage: StorageConfig
) -> TarCatalog | None:
    """Look at a folder of plain tars, and index those that are new; None when it has none.

    Raises:
        BadShardError: a tar is cut, or does not hold what it must; names file and member.
        ValueError: a filter is given, which plain tars cannot have.
    """
    place = open_storage(dataset.path, storage)
    versions = {k: v for k, v in sorted(place.versions().items()) if k.endswith(".tar")}
    if not versions:
        return None
    if dataset.kept is not None:
        raise ValueError(
            f"data_pipeline.loader.datasets: {place.url} holds plain tars, which kept: "
            f"{dataset.kept} does not know; leave kept out, or make latents with "
            "python -m data_pipeline.latents"
        )

    def count() -> list[dict[str, int]]:
        with ThreadPoolExecutor(INDEXERS) as readers:
            indexes = readers.map(lambda item: index_of(place, storage, *item), versions.items())
            return [dict(Counter(index.buckets)) for index in indexes]

    facts = [place.url, *(f"{key} {version}" for key, version in versions.items())]
    few = len(versions) < REMEMBERED_FROM_SHARDS
    sizes = count() if few else remember(storage, "tars", facts, count)
    before = np.cumsum([0, *(sum(of_tar.values()) for of_tar in sizes)]).tolist()
    part = part_of(loader, before[-1])
    return TarCatalog(
        place, storage, list(versions), list(versions.values()), sizes, before[:-1], part
    )


@dataclass(frozen=True)
class TarIndex:
    """Where a tar's parts lie, and the bucket of each sample."""

    offsets: ShardIndex
    buckets: tuple[str, ...]

    def to_bytes(self, version: str) -> bytes:
        """A parquet file that knows which version of the tar it is of."""
        table = pq.read_table(io.BytesIO(self.offsets.to_bytes()))
        table = table.append_column("bucket", pa.array(self.buckets, pa.string()))
        buffer = io.BytesIO()
        table = table.replace_schema_metadata({VERSION_KEY: version.encode()})
        pq.write_table(table, buffer, compression="zstd")
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, version: str) -> TarIndex | None:
        """Read what `to_bytes` gave; None when it is of another version."""
        table = pq.read_table(io.BytesIO(data))
        if (table.schema.metadata or {}).get(VERSION_KEY) != version.encode():
            return None
        return cls(ShardIndex.from_bytes(data), tuple(table["bucket"].to_pylist()))


def index_of(storage: Storage, config: StorageConfig, key: str, version: str) -> TarIndex:
    """The tar's index; made and stored when there is none of this version. Raises as `make_index`."""
    index = load_index(storage, config, key, version)
    if index is None:
        index = make_index(storage.local(key, version))
        data = index.to_bytes(version)
        try:
            storage.put(_index_key(key), data)
        except OSError as error:
            if error.errno not in NO_WRITING:
                raise
            _cached_indexes(storage, config).put(_index_key(key), data)
    return index


def load_index(storage: Storage, config: StorageConfig, key: str, version: str) -> TarIndex | None:
    """The stored index of this version of the tar, from beside it or from the cache folder."""
    for place in (storage, _cached_indexes(storage, config)):
        try:
            index = TarIndex.from_bytes(place.get(_index_key(key)), version)
        except FileNotFoundError:
            continue
        if index is not None:
            return index
    return None


def make_index(path: Path) -> TarIndex:
    """Index a tar and look at every sample.

    Raises:
        BadShardError: it is cut, or a sample lacks what it must hold; names file and member.
    """
    try:
        index = index_tar(path)
        shard = open_tar(path, index, {"": np.arange(len(index.keys))})
        buckets = []
        for sample in range(len(index.keys)):
            shard.facts("", sample)
            buckets.append(_bucket(shard.shape("", sample), index.keys[sample]))
    except ValueError as error:
        raise BadShardError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    return TarIndex(index, tuple(buckets))


def open_tar(path: Path, index: ShardIndex, members: dict[str, np.ndarray]) -> LatentShard:
    """A tar of others for reading single samples.

    Raises:
        ValueError: a sample has no moments or no captions.
    """
    moments, facts = _part(index, MOMENTS_PARTS), _part(index, FACTS_PARTS)
    file = path.open("rb", buffering=0)
    return LatentShard(path, file, index, members, moments, facts, "indexed", NEEDED)


def _part(index: ShardIndex, extensions: Sequence[str]) -> str:
    """The first of the extensions that the tar has; all of its samples must have it."""
    found = next((name for name in extensions if name in index.parts), None)
    if found is None:
        raise ValueError(f"has no {' or '.join(f'KEY.{name}' for name in extensions)}; {NEEDED}")
    missing = np.flatnonzero(index.parts[found].offsets < 0)
    if len(missing):
        raise ValueError(f"{index.keys[missing[0]]}.{found} is missing; {NEEDED}")
    return found


def _bucket(shape: tuple[int, ...], key: str) -> str:
    if len(shape) != 3 or shape[0] % 2:
        raise ValueError(f"{key}: moments have shape {shape}; {NEEDED}")
    return f"{shape[2] * PIXELS_PER_LATENT}x{shape[1] * PIXELS_PER_LATENT}"


def _index_key(key: str) -> str:
    return f"{key}.index.parquet"


def _cached_indexes(storage: Storage, config: StorageConfig) -> LocalStorage:
    """Where indexes are kept of tars that nothing can be written beside."""
    folder = Path(config.cache_folder).expanduser() / "tar_indexes"
    return LocalStorage(folder / hashlib.sha256(storage.url.encode()).hexdigest()[:32])
