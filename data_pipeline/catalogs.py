"""Opens the datasets of a mixture, each by what its folder holds."""

from __future__ import annotations

from data_pipeline.catalog import Catalog, open_latents
from data_pipeline.loader_config import DatasetConfig, LoaderConfig
from data_pipeline.storage import StorageConfig


def open_catalog(dataset: DatasetConfig, loader: LoaderConfig, storage: StorageConfig) -> Catalog:
    """A dataset of the mixture."""
    return open_latents(dataset, loader, storage)
