"""The order of training: which samples make up a step, as a pure function of (seed, step).

Nothing here depends on the number of processes: a step is one global batch, of which each rank
takes a slice. Nothing has state, so any step can be asked for at any time, and no array is longer
than a dataset's shards or one window's samples.

A stream is one dataset's samples of one resolution bucket. It goes through the dataset epoch
after epoch: shards in a new order each time (the same for all buckets, so that they read the same
shards at the same time), samples shuffled within windows of consecutive shards.

An epoch of the mixture takes ``weight * size`` samples from each stream, so with weight 1 each
sample exactly once. A bucket's streams are mixed evenly and cut into global batches; its epochs
follow each other without a gap, so nothing is dropped and a batch may hold the end of one epoch
and the start of the next. The buckets' batches are mixed evenly too.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from t2i import rng

# About so many neighbours are shuffled when things are mixed.
MIXED_SAMPLES = 4096
MIXED_BATCHES = 32  # few, so that the buckets stay at the same shards
PERMUTATIONS_KEPT = 64
LAYOUTS_KEPT = 4
NEAR_ATTEMPTS = 8  # replacements sought within the batch's shards before all are looked at


@dataclass(frozen=True)
class DatasetCounts:
    """How many samples a dataset has: for each bucket an int64 array (num_shards,)."""

    weight: float
    counts: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class GlobalBatch:
    """The samples of one step, in order; all of one bucket.

    Attributes:
        step: from 0.
        epoch: the mixture's epoch in which the step starts, from 0.
        datasets: (B,) int64, numbers of the datasets.
        shards: (B,) int64, numbers of the shards within them.
        members: (B,) int64, which of the bucket's samples in the shard, from 0.
    """

    step: int
    epoch: int
    bucket: str
    datasets: np.ndarray
    shards: np.ndarray
    members: np.ndarray

    def __len__(self) -> int:
        return len(self.members)


class Order:
    """The whole run's order.

    Args:
        seed: of the run.
        datasets: of the mixture; their order matters.
        global_batch: samples per step.
        window_shards: samples are shuffled within so many shards.

    Raises:
        ValueError: there are no samples.
    """

    def __init__(
        self, seed: int, datasets: Sequence[DatasetCounts], global_batch: int, window_shards: int
    ) -> None:
        self.seed, self.global_batch = seed, global_batch
        names = sorted({name for dataset in datasets for name in dataset.counts})
        self.buckets = [
            _Bucket(name, seed, streams)
            for name in names
            if (streams := _streams(name, seed, datasets, window_shards))
        ]
        if not self.buckets:
            raise ValueError("the datasets have no samples to train on")

    def batch(self, step: int) -> GlobalBatch:
        """The samples of ``step``: any step, in milliseconds."""
        epoch = _last_at_most(self.first_step, step)
        firsts = [self._batches_before(bucket, epoch) for bucket in self.buckets]
        counts = [
            self._batches_before(bucket, epoch + 1) - first
            for bucket, first in zip(self.buckets, firsts, strict=True)
        ]
        slot = step - sum(firsts)
        key = (self.seed, "order/buckets", epoch)
        chosen, ranks = (int(array[0]) for array in mix(counts, slot, slot + 1, MIXED_BATCHES, key))
        bucket = self.buckets[chosen]
        start = (firsts[chosen] + ranks) * self.global_batch
        places = bucket.locate(start, start + self.global_batch)
        return GlobalBatch(step, epoch, bucket.name, *places)

    def replacement(self, batch: GlobalBatch, place: int, attempt: int) -> tuple[int, int, int]:
        """(dataset, shard, member) of a sample to stand in at a place whose own cannot be read.

        A pure function of (seed, step, place, attempt). It is of the same dataset and bucket: in
        the first attempts of a shard that another place of the batch reads, so that reading stays
        within the window of shards; later of any shard.
        """
        dataset = int(batch.datasets[place])
        sample_id = torch.tensor([batch.step * self.global_batch + place])
        words = rng.words(self.seed, f"order/replacement/{attempt}", batch.step, sample_id, 4)
        first, second = (int(high) << 32 | int(low) for high, low in words.view(2, 2).tolist())
        bucket = next(bucket for bucket in self.buckets if bucket.name == batch.bucket)
        stream = next(stream for stream in bucket.streams if stream.dataset == dataset)
        if attempt < NEAR_ATTEMPTS:
            neighbours = batch.shards[batch.datasets == dataset]
            shard = int(neighbours[first % len(neighbours)])
        else:
            ends = np.cumsum(stream.counts)
            shard = int(np.searchsorted(ends, first % stream.size, side="right"))
        return dataset, shard, second % int(stream.counts[shard])

    def samples_in_epoch(self, epoch: int = 0) -> int:
        """How many samples the epoch visits; with weights of 1 or 2 ... the same for all epochs."""
        return sum(bucket.before(epoch + 1) - bucket.before(epoch) for bucket in self.buckets)

    def first_step(self, epoch: int) -> int:
        """The first step that starts in ``epoch`` or later."""
        return sum(self._batches_before(bucket, epoch) for bucket in self.buckets)

    def _batches_before(self, bucket: _Bucket, epoch: int) -> int:
        """How many of the bucket's batches start before the epoch does."""
        return -(-bucket.before(epoch) // self.global_batch)


class _Bucket:
    """The streams of one resolution, mixed."""

    def __init__(self, name: str, seed: int, streams: Sequence[_Stream]) -> None:
        self.name, self.seed, self.streams = name, seed, streams

    def before(self, epoch: int) -> int:
        """Samples visited before ``epoch`` of the mixture."""
        return sum(stream.before(epoch) for stream in self.streams)

    def locate(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(datasets, shards, members) of the bucket's samples start ... stop - 1 of all time."""
        places = np.empty((3, stop - start), np.int64)
        position = start
        while position < stop:
            epoch = _last_at_most(self.before, position)
            begin = self.before(epoch)
            end = min(stop, self.before(epoch + 1))
            places[:, position - start : end - start] = self._locate_in_epoch(
                epoch, position - begin, end - begin
            )
            position = end
        return places[0], places[1], places[2]

    def _locate_in_epoch(self, epoch: int, start: int, stop: int) -> np.ndarray:
        befores = [stream.before(epoch) for stream in self.streams]
        counts = [
            stream.before(epoch + 1) - before
            for stream, before in zip(self.streams, befores, strict=True)
        ]
        key = (self.seed, f"order/mixture/{self.name}", epoch)
        labels, ranks = mix(counts, start, stop, MIXED_SAMPLES, key)
        places = np.empty((3, stop - start), np.int64)
        for number, (stream, before) in enumerate(zip(self.streams, befores, strict=True)):
            chosen = np.flatnonzero(labels == number)
            places[0, chosen] = stream.dataset
            places[1:, chosen] = stream.locate(before + ranks[chosen])
        return places


class _Stream:
    """One dataset's samples of one bucket, epoch after epoch."""

    def __init__(
        self,
        seed: int,
        dataset: int,
        bucket: str,
        weight: float,
        counts: np.ndarray,
        window_shards: int,
    ) -> None:
        self.seed, self.dataset, self.bucket = seed, dataset, bucket
        self.weight = Fraction(weight).limit_denominator(1_000_000)
        self.counts, self.size = counts, int(counts.sum())
        self.window_shards = window_shards
        self.layouts: dict[int, _Layout] = {}

    def before(self, epoch: int) -> int:
        """Samples that the mixture has taken before its ``epoch``."""
        return epoch * self.size * self.weight.numerator // self.weight.denominator

    def locate(self, positions: np.ndarray) -> np.ndarray:
        """(shards, members) as int64 (2, P) of the stream's samples of all time, in any order."""
        places = np.empty((2, len(positions)), np.int64)
        epochs, offsets = np.divmod(positions, self.size)
        for epoch in np.unique(epochs).tolist():
            layout = self._layout(epoch)
            windows = np.searchsorted(layout.window_ends, offsets, side="right")
            for window in np.unique(windows[epochs == epoch]).tolist():
                chosen = np.flatnonzero((epochs == epoch) & (windows == window))
                places[:, chosen] = self._locate_in_window(layout, window, offsets[chosen])
        return places

    def _locate_in_window(self, layout: _Layout, window: int, offsets: np.ndarray) -> np.ndarray:
        start = int(layout.window_ends[window - 1]) if window else 0
        size = int(layout.window_ends[window]) - start
        stream = f"order/window/{self.dataset}/{self.bucket}"
        shuffled = (
            start + permutation(self.seed, stream, layout.epoch, start, size)[offsets - start]
        )
        slots = np.searchsorted(layout.ends, shuffled, side="right")
        shards = layout.shards[slots]
        return np.stack([shards, shuffled - layout.ends[slots] + self.counts[shards]])

    def _layout(self, epoch: int) -> _Layout:
        if epoch not in self.layouts:
            if len(self.layouts) >= LAYOUTS_KEPT:
                self.layouts.clear()
            shards = permutation(
                self.seed, f"order/shards/{self.dataset}", epoch, 0, len(self.counts)
            )
            ends = np.cumsum(self.counts[shards])
            lasts = np.arange(
                self.window_shards, len(ends) + self.window_shards, self.window_shards
            )
            window_ends = ends[np.minimum(lasts, len(ends)) - 1]
            self.layouts[epoch] = _Layout(epoch, shards, ends, window_ends)
        return self.layouts[epoch]


@dataclass(frozen=True)
class _Layout:
    """An epoch of a stream before the windows are shuffled: shards in order, and where they and
    the windows end (in samples)."""

    epoch: int
    shards: np.ndarray
    ends: np.ndarray
    window_ends: np.ndarray


def mix(
    counts: Sequence[int], start: int, stop: int, block_size: int, key: tuple[int, str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mix ``counts[k]`` items of each kind k evenly, in random order.

    The sequence is made of blocks of about ``block_size`` items; each holds its proportional part
    of every kind, and is shuffled.

    Args:
        start, stop: the part of the sequence that is wanted, 0 <= start < stop <= sum(counts).
        key: seed, stream and epoch, which the order depends on.

    Returns:
        (kinds, ranks), int64 (stop - start,): the kind at each place, and how many of that kind
        came before it.
    """
    if len(counts) == 1:
        return np.zeros(stop - start, np.int64), np.arange(start, stop)
    num_blocks = -(-sum(counts) // block_size)

    def kinds_before(block: int) -> list[int]:
        return [-(-block * count // num_blocks) for count in counts]

    kinds, ranks = np.empty(stop - start, np.int64), np.empty(stop - start, np.int64)
    place = start
    while place < stop:
        block = _last_at_most(lambda block: sum(kinds_before(block)), place)
        befores, afters = kinds_before(block), kinds_before(block + 1)
        begin, end = sum(befores), sum(afters)
        block_kinds, block_ranks = _shuffled_block(befores, afters, key)
        wanted = slice(place - begin, min(stop, end) - begin)
        filled = slice(place - start, min(stop, end) - start)
        kinds[filled], ranks[filled] = block_kinds[wanted], block_ranks[wanted]
        place = min(stop, end)
    return kinds, ranks


def _shuffled_block(
    befores: Sequence[int], afters: Sequence[int], key: tuple[int, str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(kinds, ranks) of a block that holds items befores[k] ... afters[k] - 1 of each kind k."""
    sizes = np.subtract(afters, befores)
    size = int(sizes.sum())
    order = permutation(*key, sum(befores), size)
    kinds = np.repeat(np.arange(len(sizes)), sizes)[order]
    ranks = np.empty(size, np.int64)
    ranks[np.argsort(kinds, kind="stable")] = np.concatenate(
        [np.arange(before, after) for before, after in zip(befores, afters, strict=True)]
    )
    return kinds, ranks


@functools.lru_cache(maxsize=PERMUTATIONS_KEPT)
def permutation(seed: int, stream: str, epoch: int, start: int, size: int) -> np.ndarray:
    """A random permutation of 0 ... size - 1, int32, read-only: sorts draws for start + i."""
    ids = torch.arange(start, start + size)
    high, low = rng.words(seed, stream, epoch, ids, 2).unbind(dim=1)
    order = torch.argsort((high >> 1 << 32) | low, stable=True).numpy().astype(np.int32)
    order.flags.writeable = False
    return order


def _streams(
    bucket: str, seed: int, datasets: Sequence[DatasetCounts], window_shards: int
) -> list[_Stream]:
    """The streams of a bucket that are not empty."""
    return [
        _Stream(seed, number, bucket, dataset.weight, dataset.counts[bucket], window_shards)
        for number, dataset in enumerate(datasets)
        if bucket in dataset.counts and dataset.counts[bucket].any()
    ]


def _last_at_most(function: Callable[[int], int], value: int) -> int:
    """The last n >= 0 with function(n) <= value; function(0) = 0, never falls, grows for ever."""
    limit = 1
    while function(limit) <= value:
        limit *= 2
    return bisect.bisect_right(range(limit), value, key=function) - 1
