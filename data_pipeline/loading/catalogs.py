"""Opens the datasets of a mixture, each by what its folder holds."""

from __future__ import annotations

import hashlib

from data_pipeline.loading.catalog import Catalog, open_latents
from data_pipeline.loading.loader_config import DatasetConfig, LoaderConfig
from data_pipeline.loading.tar_catalog import open_tars
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.storage.interface import StorageConfig


def open_catalog(dataset: DatasetConfig, loader: LoaderConfig, storage: StorageConfig) -> Catalog:
    """A dataset of the mixture: the output of `data_pipeline.latents`, or plain tars of others.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: as `open_latents` and `open_tars` do.
    """
    latents = StepOutput.open(dataset.path, storage)
    is_step_output = latents.fingerprint() is not None or latents.committed()
    tars = None if is_step_output else open_tars(dataset, loader, storage)
    return open_latents(dataset, loader, storage) if tars is None else tars


def describe_shards(catalog: Catalog) -> str:
    """ "240 samples in 12 shards (3f2a1b9c0d1e)": shards of equal descriptions give equal orders.

    The digits are of a hash over the names of the shards and their sizes by bucket.

    Raises:
        FileNotFoundError, ValueError: as ``catalog.counts``.
    """
    counts = {bucket: sizes for bucket, sizes in catalog.counts().items() if sizes.any()}
    num_shards = max(map(len, counts.values()), default=0)
    total = hashlib.sha256()
    for shard in range(num_shards):
        total.update(catalog.shard_name(shard).removeprefix(catalog.url).encode() + b"\n")
    for bucket, sizes in sorted(counts.items()):
        total.update(bucket.encode() + b"\n" + sizes.astype("<i8").tobytes())
    num_samples = sum(int(sizes.sum()) for sizes in counts.values())
    return f"{num_samples} samples in {num_shards} shards ({total.hexdigest()[:12]})"
