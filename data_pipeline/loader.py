"""Latents, captions and labels as batches: a standard DataLoader over shards, in the order of `order`.

    loader = make_loader(config, seed=0, rank=0, world_size=1, global_batch=64, micro_batch=32,
                         start_step=0)
    for batch in loader: ...          # TrainingBatch, for ever

The whole state is ``start_step``. A rank's micro-batches are a contiguous slice of the global
batch, and captions are drawn by sample, so nothing depends on the number of processes.
"""

from __future__ import annotations

import atexit
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_pipeline.loading.catalog import Catalog
from data_pipeline.loading.catalogs import open_catalog
from data_pipeline.loading.latent_shards import LatentSample
from data_pipeline.loading.loader_config import LoaderConfig
from data_pipeline.loading.order import DatasetCounts, GlobalBatch, Order
from data_pipeline.loading.sample_reader import BadShard, SampleReader
from data_pipeline.storage.interface import StorageConfig
from t2i import rng
from t2i.batch import DROPPED, TrainingBatch
from t2i.console import MetricsFile, get_logger

# How long a worker goes on after SIGTERM.
SIGTERM_GRACE_SECONDS = 300
FOREVER = 2**62  # more micro-batches than any run has

logger = get_logger("loader")


def make_loader(
    config: LoaderConfig,
    *,
    seed: int,
    rank: int,
    world_size: int,
    global_batch: int,
    micro_batch: int,
    start_step: int,
    storage: StorageConfig | None = None,
    account: Path | None = None,
) -> LatentLoader:
    """This rank's micro-batches from ``start_step`` on, without end.

    Args:
        seed: of the run.
        global_batch: samples of a step over all ranks; a multiple of micro_batch x world_size.
        micro_batch: samples of one `TrainingBatch`.
        storage: how s3:// data is reached, and the cache folder.
        account: folder for this rank's account of bad shards, see `LatentLoader`.

    Raises:
        FileNotFoundError: a dataset has no shards; while iterating: a shard is gone.
        ValueError: sizes that do not divide, datasets that do not fit together; while iterating:
            a shard was cut or changed, a sample has no label where labels are read. What
            ``on_bad_shard: skip`` replaces raises nothing, see `sample_reader`.
        TimeoutError: while iterating: S3 was not reached for ``retry_minutes``.
    """
    share = Share(global_batch, rank, world_size, micro_batch)
    batches = LatentBatches(config, seed, share, storage or StorageConfig())
    if rank == 0:
        logger.info("%s", batches.describe())
    return LatentLoader(
        batches,
        None if account is None else account / f"bad_shards-{rank:05d}.jsonl",
        sampler=range(start_step * share.per_step, FOREVER),
        num_workers=config.num_workers,
        prefetch_factor=config.prefetch if config.num_workers else None,
    )


def read_captions(
    config: LoaderConfig, seed: int, count: int, storage: StorageConfig | None = None
) -> tuple[str, ...]:
    """Captions of the first ``count`` samples of the data's order, levels drawn, none dropped.

    A function of its arguments alone. They are read from one shard of each dataset where that
    suffices, so that nothing else has to be fetched.

    Raises:
        FileNotFoundError, ValueError: as of `make_loader`.
    """
    config = config.model_copy(update={"caption_dropout": 0.0, "window_shards": 1})
    batches = LatentBatches(config, seed, Share(1, 0, 1, 1), storage or StorageConfig())
    return tuple(batches.read(number)[0].captions[0] for number in range(count))


# A micro-batch with what could not be read for it, or the error that stops the run. An error that a
# worker raises instead would come with the text of the worker's traceback in place of its own.
Delivery: TypeAlias = tuple[TrainingBatch, list[BadShard]] | OSError | ValueError


class LatentLoader(DataLoader[Delivery]):
    """A DataLoader that keeps account of bad shards and always ends its workers.

    Args:
        account: JSON lines of what was replaced: part, step, shard, reason, replaced (number of
            samples). A run that goes back to a checkpoint writes the steps after it again.
    """

    def __init__(
        self,
        batches: LatentBatches,
        account: Path | None,
        sampler: range,
        num_workers: int,
        prefetch_factor: int | None,
    ) -> None:
        super().__init__(
            batches,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=outlive_sigterm,
        )
        self.account, self.part = account, batches.config.part
        self.known_bad: set[str] = set()

    def __iter__(self) -> Iterator[TrainingBatch]:  # type: ignore[override]
        deliveries = super().__iter__()
        with _ended_workers(deliveries):
            for delivery in deliveries:
                if isinstance(delivery, Exception):
                    raise delivery
                batch, bad_shards = delivery
                self._record(batch.step, bad_shards)
                yield batch

    def _record(self, step: int, bad_shards: Sequence[BadShard]) -> None:
        for bad in bad_shards:
            if bad.shard not in self.known_bad:
                self.known_bad.add(bad.shard)
                logger.warning("bad shard, skipped from step %d on: %s", step, bad.reason)
            if bad.replaced and self.account is not None:
                MetricsFile(self.account).write({"part": self.part, "step": step, **asdict(bad)})


@contextmanager
def _ended_workers(deliveries: Any) -> Iterator[None]:
    """End the iterator's workers after the block, and before the interpreter exits.

    Left to the garbage collector, they may not be told to end; then `outlive_sigterm` keeps them,
    and the process waits for them at its exit.
    """
    end = getattr(deliveries, "_shutdown_workers", lambda: None)  # without workers there is none
    atexit.register(end)
    try:
        yield
    finally:
        atexit.unregister(end)
        end()


def outlive_sigterm(_worker: int) -> None:
    """Make a worker serve on for a while after SIGTERM.

    A scheduler that stops a job signals all of its processes; the rank then finishes its step and
    saves, and needs its workers for that.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SIGTERM_GRACE_SECONDS))


class Share:
    """What one rank takes of each global batch: a contiguous slice, in micro-batches.

    Raises:
        ValueError: the global batch cannot be dealt out evenly.
    """

    def __init__(self, global_batch: int, rank: int, world_size: int, micro_batch: int) -> None:
        if global_batch % (world_size * micro_batch):
            raise ValueError(
                f"a global batch of {global_batch} cannot be dealt out to {world_size} processes "
                f"in micro-batches of {micro_batch}"
            )
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        self.global_batch, self.micro_batch = global_batch, micro_batch
        self.per_step = global_batch // world_size // micro_batch
        self.first_place = rank * (global_batch // world_size)

    def locate(self, number: int) -> tuple[int, slice]:
        """(step, places in its global batch) of this rank's micro-batch ``number``."""
        step, part = divmod(number, self.per_step)
        start = self.first_place + part * self.micro_batch
        return step, slice(start, start + self.micro_batch)


class LatentBatches(Dataset[Delivery]):
    """This rank's micro-batches by number; errors that a user can mend come as values."""

    def __init__(
        self, config: LoaderConfig, seed: int, share: Share, storage: StorageConfig
    ) -> None:
        self.config, self.seed, self.share = config, seed, share
        self.catalogs = [open_catalog(dataset, config, storage) for dataset in config.datasets]
        require_one_vae(self.catalogs)
        if config.horizontal_flips:
            require_mirrored(self.catalogs)
        self.counts = [
            DatasetCounts(dataset.weight, catalog.counts())
            for dataset, catalog in zip(config.datasets, self.catalogs, strict=True)
        ]
        self.order = Order(seed, self.counts, share.global_batch, config.window_shards)
        self.global_batch: GlobalBatch | None = None
        max_shards = 2 * config.window_shards * len(config.datasets)
        skip = config.on_bad_shard == "skip"
        self.reader = SampleReader(
            self.catalogs, self.order, max_shards, skip, config.retry_minutes
        )

    def __getitem__(self, number: int) -> Delivery:
        try:
            return self.read(number)
        except (OSError, ValueError) as error:
            return error

    def read(self, number: int) -> tuple[TrainingBatch, list[BadShard]]:
        """A micro-batch and what could not be read for it. Raises as `make_loader` says."""
        step, places = self.share.locate(number)
        if self.global_batch is None or self.global_batch.step != step:
            self.global_batch = self.order.batch(step)
        first_id = step * self.share.global_batch
        sample_ids = torch.arange(first_id + places.start, first_id + places.stop)
        are_mirrored = draw_mirrored(self.config, self.seed, step, sample_ids)
        reading = self.reader.read(self.global_batch, places, are_mirrored)
        samples = reading.samples
        dropped = draw_dropped(self.config, self.seed, step, sample_ids)
        batch = TrainingBatch(
            moments=reading.moments,
            captions=draw_captions(self.config, self.seed, step, sample_ids, samples, dropped),
            keys=tuple(sample.key for sample in samples),
            sample_ids=sample_ids,
            step=step,
            labels=stack_labels(samples, dropped) if self.config.labels else None,
            epoch=self.global_batch.epoch,
            num_replaced=sum(bad.replaced for bad in reading.bad_shards),
        )
        return batch, reading.bad_shards

    def describe(self) -> str:
        """One line: samples, buckets and steps of an epoch."""
        num_samples = self.order.samples_in_epoch()
        total = sum(catalog.num_samples for catalog in self.catalogs)
        names = ", ".join(bucket.name for bucket in self.order.buckets)
        return (
            f"{self.config.part}: an epoch visits {num_samples} samples ({total} in "
            f"{len(self.catalogs)} dataset(s)) of {names} px, in "
            f"{num_samples / self.share.global_batch:.1f} steps of {self.share.global_batch}"
        )


def draw_mirrored(config: LoaderConfig, seed: int, step: int, sample_ids: Tensor) -> list[bool]:
    """Which samples are their mirrored pictures: half of them, under ``horizontal_flips``."""
    if not config.horizontal_flips:
        return [False] * len(sample_ids)
    return [draw < 0.5 for draw in rng.uniform(seed, "flip", step, sample_ids, ()).tolist()]


def draw_dropped(config: LoaderConfig, seed: int, step: int, sample_ids: Tensor) -> list[bool]:
    """Which samples lose their condition, with probability ``caption_dropout``."""
    draws = rng.uniform(seed, "dropout", step, sample_ids, ()).tolist()
    return [draw < config.caption_dropout for draw in draws]


def draw_captions(
    config: LoaderConfig,
    seed: int,
    step: int,
    sample_ids: Tensor,
    samples: Sequence[LatentSample],
    dropped: Sequence[bool],
) -> tuple[str, ...]:
    """One caption per sample: its level drawn with the config's probabilities, or "" (dropped)."""
    level_draws = rng.uniform(seed, "caption", step, sample_ids, ()).tolist()
    # a draw below 1 always finds a level, even if the probabilities sum to a little less
    limits = np.cumsum(config.caption_levels)[:-1]
    levels = np.searchsorted(limits, level_draws, side="right").tolist()
    return tuple(
        "" if is_dropped else sample.captions[level]
        for sample, level, is_dropped in zip(samples, levels, dropped, strict=True)
    )


def stack_labels(samples: Sequence[LatentSample], dropped: Sequence[bool]) -> Tensor:
    """(B,) int64 labels. Raises ValueError, naming the sample, when one has none."""
    for sample in samples:
        if not isinstance(sample.label, int) or sample.label < 0:
            raise ValueError(
                f'sample {sample.key} has no label (an integer >= 0 under "label" in its json; '
                f"found {sample.label!r}): add a column label to the metadata and make images and "
                "latents again, or set data_pipeline.loader.labels to false"
            )
    pairs = zip(samples, dropped, strict=True)
    return torch.tensor([DROPPED if is_dropped else sample.label for sample, is_dropped in pairs])


def require_mirrored(catalogs: Sequence[Catalog]) -> None:
    """Raise ValueError when a dataset has no latents of mirrored pictures."""
    for catalog in catalogs:
        if not catalog.is_mirrored:
            raise ValueError(
                f"data_pipeline.loader.horizontal_flips: {catalog.url} has no latents of mirrored "
                "pictures; make it anew with data_pipeline.latents.mirrored true, or set "
                "horizontal_flips to false"
            )


def require_one_vae(catalogs: Sequence[Catalog]) -> None:
    """Raise ValueError when the datasets' latents come from different VAEs, as far as is known."""
    known: dict[str, str] = {}
    for catalog in catalogs:
        if catalog.vae is not None:
            known.setdefault(str(catalog.vae), catalog.url)
    if len(known) > 1:
        listing = "; ".join(f"{url}: {vae}" for vae, url in known.items())
        raise ValueError(f"data_pipeline.loader.datasets: latents of different VAEs ({listing})")
