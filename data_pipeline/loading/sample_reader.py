"""Reads the samples of a batch, and keeps to the policy about those that cannot be read.

Under ``on_bad_shard: skip`` the place of a sample whose shard is missing, cut or changed is filled
by another one of the same dataset and bucket, a pure function of (seed, step, place) and of which
samples can be read. Nothing is remembered from one batch to the next that could change what is
read, so the batches are the same at every world size, with any number of workers and after a
restart, as long as the same files are bad for all. All other places keep their samples; an epoch
then visits each readable sample at least once, and some of them once more.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from data_pipeline.loading.catalog import Catalog
from data_pipeline.loading.latent_shards import BadShardError, LatentSample, LatentShard
from data_pipeline.loading.order import GlobalBatch, Order
from data_pipeline.storage.outages import outlast

ResultT = TypeVar("ResultT")
MAX_ATTEMPTS = 64  # with half of the samples bad, all fail once in 10^19 places


@dataclass(frozen=True)
class BadShard:
    """What a batch could not read of a shard: its address, why, and how many samples."""

    shard: str
    reason: str
    replaced: int


@dataclass(frozen=True)
class Reading:
    """The samples of some places of a global batch; moments are float16 (B, 2C, h, w)."""

    moments: Tensor
    samples: list[LatentSample]
    bad_shards: list[BadShard]


@dataclass
class SampleReader:
    """Keeps some shards open; those used longest ago are closed.

    Attributes:
        max_shards: how many.
        skip: replace what cannot be read; otherwise its error stops the run.
        retry_minutes: how long a shard is tried again while network or service fail.
    """

    catalogs: Sequence[Catalog]
    order: Order
    max_shards: int
    skip: bool
    retry_minutes: float
    shards: dict[tuple[int, int], LatentShard | Exception] = field(default_factory=dict)

    def read(self, batch: GlobalBatch, places: slice, are_mirrored: Sequence[bool]) -> Reading:
        """The samples of ``places`` of a global batch, and of which pictures the mirrored ones.

        Raises:
            FileNotFoundError, BadShardError: a shard is gone, cut or changed, and none is skipped
                (or all that was tried instead is bad as well); names shard and way out.
            TimeoutError: a shard could not be reached for ``retry_minutes``.
            ValueError: samples differ in shape.
        """
        shape = self._first_readable(batch, places.start, LatentShard.shape, {}, Counter())
        moments = empty_batch((places.stop - places.start, *shape))
        reasons: dict[str, str] = {}
        replaced: Counter[str] = Counter()
        samples = []
        numbers = range(places.start, places.stop)
        for place, row, is_mirrored in zip(numbers, moments.numpy(), are_mirrored, strict=True):
            read = functools.partial(LatentShard.read, moments=row, is_mirrored=is_mirrored)
            samples.append(self._first_readable(batch, place, read, reasons, replaced))
        bad_shards = [BadShard(name, reason, replaced[name]) for name, reason in reasons.items()]
        return Reading(moments, samples, bad_shards)

    def _first_readable(
        self,
        batch: GlobalBatch,
        place: int,
        read: Callable[[LatentShard, str, int], ResultT],
        reasons: dict[str, str],
        replaced: Counter[str],
    ) -> ResultT:
        """What ``read`` gives of the place's sample or of the first readable one that replaces it."""
        for attempt, (dataset, number, member) in enumerate(self._candidates(batch, place)):
            try:
                return read(self._shard(dataset, number), batch.bucket, member)
            except (FileNotFoundError, BadShardError) as error:
                name = self.catalogs[dataset].shard_name(number)
                if not self.skip:
                    raise with_way_out(error, name) from None
                if attempt == MAX_ATTEMPTS:
                    raise
                reasons.setdefault(name, str(error))
                replaced[name] += attempt == 0
        raise AssertionError("the last attempt returns or raises")

    def _candidates(self, batch: GlobalBatch, place: int) -> Iterator[tuple[int, int, int]]:
        """(dataset, shard, member) of the place's own sample, then of those that replace it."""
        yield int(batch.datasets[place]), int(batch.shards[place]), int(batch.members[place])
        for attempt in range(MAX_ATTEMPTS):
            yield self.order.replacement(batch, place, attempt)

    def _shard(self, dataset: int, number: int) -> LatentShard:
        """The open shard. One that could not be opened is not tried again before others were."""
        key = (dataset, number)
        opened = self.shards.pop(key, None)
        if opened is None:
            catalog = self.catalogs[dataset]
            open_shard = functools.partial(catalog.open_shard, number)
            try:
                opened = outlast(open_shard, catalog.shard_name(number), self.retry_minutes)
            except (FileNotFoundError, BadShardError) as error:
                opened = error
        self.shards[key] = opened
        if len(self.shards) > self.max_shards:
            del self.shards[next(iter(self.shards))]
        if isinstance(opened, Exception):
            raise opened.with_traceback(None)
        return opened


def with_way_out(
    error: FileNotFoundError | BadShardError, name: str
) -> FileNotFoundError | BadShardError:
    """The error of a shard, of the same kind, with the shard's name and what can be done."""
    named = str(error) if name in str(error) else f"{name}: {error}"
    if isinstance(error, FileNotFoundError):
        named += "; make it again"
    return type(error)(
        f"{named}, or go on without it: --set data_pipeline.loader.on_bad_shard=skip"
    )


def empty_batch(shape: tuple[int, ...]) -> Tensor:
    """A float16 tensor to fill; in a worker in shared memory, so that it is not copied once more."""
    moments = torch.empty(shape, dtype=torch.float16)
    return moments if get_worker_info() is None else moments.share_memory_()
