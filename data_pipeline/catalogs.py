"""Opens the datasets of a mixture, each by what its folder holds."""

from __future__ import annotations

from data_pipeline.catalog import Catalog, open_latents
from data_pipeline.loader_config import DatasetConfig, LoaderConfig
from data_pipeline.manifest import StepOutput
from data_pipeline.storage import StorageConfig
from data_pipeline.tar_catalog import open_tars


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
