"""Proves the order: exact epochs at any weights and buckets, one bucket per batch, no state, a
shuffle that passes statistical checks, and a start at full scale within seconds and megabytes.

The statistical checks have fixed seeds. The odds of a false alarm, had the seeds been drawn
anew, are stated beside each limit.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from data_pipeline.loader import Share
from data_pipeline.loading.order import (
    NEAR_ATTEMPTS,
    DatasetCounts,
    GlobalBatch,
    Order,
    mix,
    permutation,
)

Place = tuple[int, int, int]  # dataset, shard, member


def places(batch: GlobalBatch) -> list[Place]:
    arrays = (batch.datasets, batch.shards, batch.members)
    return list(zip(*(array.tolist() for array in arrays), strict=True))


def visits_by_bucket(order: Order, num_steps: int) -> dict[str, list[Place]]:
    """What the first steps visit, in order."""
    visits: dict[str, list[Place]] = {}
    for step in range(num_steps):
        batch = order.batch(step)
        assert len(batch) == order.global_batch
        visits.setdefault(batch.bucket, []).extend(places(batch))
    return visits


def members_of(datasets: list[DatasetCounts], bucket: str) -> Iterator[tuple[float, Place]]:
    """Each sample of a bucket with its dataset's weight."""
    for number, dataset in enumerate(datasets):
        counts = dataset.counts.get(bucket, np.zeros(0, np.int64))
        for shard, count in enumerate(counts.tolist()):
            for member in range(count):
                yield dataset.weight, (number, shard, member)


def one_dataset(*counts: int) -> list[DatasetCounts]:
    return [DatasetCounts(1.0, {"b": np.array(counts)})]


@st.composite
def mixtures(draw: st.DrawFn) -> list[DatasetCounts]:
    """One to three datasets with one to three buckets and a few samples in each shard."""
    datasets = []
    for _ in range(draw(st.integers(1, 3))):
        num_shards = draw(st.integers(1, 5))
        counts = st.lists(st.integers(0, 9), min_size=num_shards, max_size=num_shards)
        buckets = draw(st.dictionaries(st.sampled_from("abc"), counts.map(np.array), min_size=1))
        datasets.append(DatasetCounts(draw(st.sampled_from([0.5, 1.0, 2.0])), buckets))
    return datasets


@settings(deadline=None, max_examples=30)
@given(mixtures(), st.integers(1, 12), st.integers(1, 3), st.integers(0, 10))
def test_every_epoch_visits_each_sample_as_often_as_its_weight_says(
    datasets: list[DatasetCounts], global_batch: int, window: int, seed: int
) -> None:
    if not any(counts.any() for dataset in datasets for counts in dataset.counts.values()):
        with pytest.raises(ValueError, match="no samples"):
            Order(seed, datasets, global_batch, window)
        return
    order = Order(seed, datasets, global_batch, window)
    visits = visits_by_bucket(order, order.first_step(4))
    for bucket in order.buckets:
        assert len(visits[bucket.name]) >= bucket.before(4)
        for epoch in (0, 2):  # two epochs at a time, so that a weight of 0.5 comes out even
            part = visits[bucket.name][bucket.before(epoch) : bucket.before(epoch + 2)]
            expected = {place: 2 * weight for weight, place in members_of(datasets, bucket.name)}
            assert dict(Counter(part)) == expected


def test_no_sample_comes_twice_before_all_have_come_once_at_weight_one() -> None:
    order = Order(3, one_dataset(7, 0, 5, 9, 4), global_batch=4, window_shards=2)
    visits = visits_by_bucket(order, 25)["b"]
    for epoch in range(4):
        assert len(set(visits[25 * epoch : 25 * epoch + 25])) == 25


def test_a_dataset_smaller_than_a_batch_is_visited_evenly() -> None:
    order = Order(0, one_dataset(3, 2), global_batch=16, window_shards=1)
    visits = Counter(visits_by_bucket(order, 5)["b"])
    assert set(visits.values()) == {16}
    assert [order.first_step(epoch) for epoch in (0, 1, 2, 3, 4, 16)] == [0, 1, 1, 1, 2, 5]


def test_a_step_can_be_asked_for_at_any_time_and_by_anyone() -> None:
    def make() -> Order:
        buckets = {"a": np.array([30, 10, 20]), "b": np.array([5, 15, 0])}
        return Order(1, [DatasetCounts(1.0, buckets), DatasetCounts(0.3, buckets)], 8, 2)

    straight, jumping = make(), make()
    expected = [straight.batch(step) for step in range(60)]
    for step in (59, 0, 31, 7, 59, 8):
        assert places(jumping.batch(step)) == places(expected[step])
        assert jumping.batch(step).bucket == expected[step].bucket
        assert places(make().batch(step)) == places(expected[step])


def test_epochs_of_batches_follow_the_first_steps() -> None:
    order = Order(0, one_dataset(10, 11), global_batch=4, window_shards=1)
    assert [order.first_step(epoch) for epoch in range(4)] == [0, 6, 11, 16]
    assert [order.batch(step).epoch for step in (0, 5, 6, 10, 11, 15, 16)] == [0, 0, 1, 1, 2, 2, 3]
    assert order.samples_in_epoch() == 21


def test_seeds_and_epochs_give_different_orders() -> None:
    def epoch_of(seed: int, epoch: int) -> list[Place]:
        order = Order(seed, one_dataset(*[20] * 10), global_batch=200, window_shards=3)
        return places(order.batch(epoch))

    orders = [epoch_of(0, 0), epoch_of(0, 1), epoch_of(1, 0)]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        equal = sum(a == b for a, b in zip(orders[one], orders[other], strict=True))
        assert equal < 14  # about Poisson(1): more by chance in 1 of 10^11


def test_reading_stays_within_a_window_of_shards() -> None:
    order = Order(0, one_dataset(*[50] * 40), global_batch=10, window_shards=4)
    for start in range(0, 200, 20):
        shards = {
            shard for step in range(start, start + 20) for _, shard, _ in places(order.batch(step))
        }
        assert len(shards) == 4


def test_all_buckets_read_the_same_shards_at_the_same_time() -> None:
    counts = {name: np.full(100, 64) for name in "abcd"}
    order = Order(0, [DatasetCounts(1.0, counts)], global_batch=64, window_shards=10)
    for start in range(0, 400, 40):
        shards = {s for step in range(start, start + 40) for _, s, _ in places(order.batch(step))}
        assert len(shards) <= 30  # of 100: one window and its neighbours


def test_buckets_and_datasets_are_spread_evenly_over_the_epoch() -> None:
    small, large = {"a": np.full(10, 300)}, {"a": np.full(10, 600), "b": np.full(10, 100)}
    order = Order(0, [DatasetCounts(1.0, small), DatasetCounts(1.0, large)], 10, 2)
    batches = [order.batch(step) for step in range(1000)]
    for part in (batches[:500], batches[500:]):
        num_b = sum(batch.bucket == "b" for batch in part)
        assert abs(num_b - 50) < 36  # 5.4 standard deviations of drawing: 1 in 10^7
        of_small = sum((batch.datasets == 0).sum() for batch in part if batch.bucket == "a")
        share = of_small / (10 * sum(batch.bucket == "a" for batch in part))
        assert share == pytest.approx(1 / 3, abs=0.04)  # 5 standard deviations: 1 in 10^6


def test_a_window_is_shuffled_without_memory_of_its_order() -> None:
    """Three facts of a random permutation of n: no correlation with the order before it (standard
    deviation 1 / sqrt(n - 1)); as many neighbours that stay together, and as many items that stay
    in place, as Poisson(1) says."""
    size = 20_000
    order = permutation(5, "order/window/0/b", 2, 0, size).astype(np.int64)
    assert sorted(order.tolist()) == list(range(size))
    assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 5 / np.sqrt(size)  # 1 in 10^6
    assert (np.diff(order) == 1).sum() < 11  # 1 in 10^8
    assert (order == np.arange(size)).sum() < 11  # 1 in 10^8


def test_every_place_in_a_window_is_equally_likely() -> None:
    """Where one sample comes in 400 epochs, and which shard comes first: chi-square."""
    order = Order(0, one_dataset(*[8] * 8), global_batch=64, window_shards=8)
    visits = [places(order.batch(epoch)) for epoch in range(400)]
    of_sample = Counter(visit.index((0, 3, 5)) // 4 for visit in visits)
    of_first = Counter(visit[0][1] for visit in visits)
    assert chisquare([of_sample[n] for n in range(16)]).pvalue > 1e-6  # 1 in 10^6
    assert chisquare([of_first[n] for n in range(8)]).pvalue > 1e-6  # 1 in 10^6


def test_shards_are_permuted_evenly() -> None:
    firsts = Counter(
        Order(seed, one_dataset(*[1] * 8), 1, 1).batch(0).shards[0].item() for seed in range(400)
    )
    assert chisquare([firsts[n] for n in range(8)]).pvalue > 1e-6  # 1 in 10^6


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=4),
    st.sampled_from([7, 4096]),
    st.data(),
)
def test_mixing_deals_each_item_once_whatever_part_is_asked_for(
    counts: list[int], block_size: int, data: st.DataObject
) -> None:
    total = sum(counts)
    if total == 0:
        return
    kinds, ranks = mix(counts, 0, total, block_size, (0, "test", 0))
    for kind, count in enumerate(counts):
        assert ranks[kinds == kind].tolist() == list(range(count))
    start = data.draw(st.integers(0, total - 1))
    stop = data.draw(st.integers(start + 1, total))
    part_kinds, part_ranks = mix(counts, start, stop, block_size, (0, "test", 0))
    assert part_kinds.tolist() == kinds[start:stop].tolist()
    assert part_ranks.tolist() == ranks[start:stop].tolist()


@settings(deadline=None, max_examples=15)
@given(mixtures(), st.integers(0, 10), st.lists(st.integers(0, 40), max_size=3), st.data())
def test_restarts_at_any_step_with_any_world_size_give_the_same_global_batches(
    datasets: list[DatasetCounts], seed: int, restarts: list[int], data: st.DataObject
) -> None:
    """A run that stops and goes on with 1, 2 or 4 processes, each with an order of its own."""
    if not any(counts.any() for dataset in datasets for counts in dataset.counts.values()):
        return
    straight = Order(seed, datasets, 8, 2)
    starts = [0, *sorted(set(restarts) - {0}), 41]
    for start, stop in itertools.pairwise(starts):
        world_size = data.draw(st.sampled_from([1, 2, 4]))
        shares = [Share(8, rank, world_size, 2) for rank in range(world_size)]
        orders = [Order(seed, datasets, 8, 2) for _ in shares]
        for step in range(start, stop):
            found: list[Place] = []
            for share, order in zip(shares, orders, strict=True):
                for number in range(step * share.per_step, (step + 1) * share.per_step):
                    located, part = share.locate(number)
                    found += places(order.batch(located))[part]
            assert found == places(straight.batch(step))


@settings(deadline=None, max_examples=30)
@given(mixtures(), st.integers(0, 30), st.integers(0, 12))
def test_a_replacement_is_a_sample_of_the_same_bucket_and_dataset(
    datasets: list[DatasetCounts], step: int, attempt: int
) -> None:
    if not any(counts.any() for dataset in datasets for counts in dataset.counts.values()):
        return
    order = Order(1, datasets, 8, 2)
    batch = order.batch(step)
    for place in range(8):
        found = order.replacement(batch, place, attempt)
        assert found == Order(1, datasets, 8, 2).replacement(batch, place, attempt)
        dataset, shard, member = found
        assert dataset == batch.datasets[place]
        assert 0 <= member < datasets[dataset].counts[batch.bucket][shard]
        if attempt < NEAR_ATTEMPTS:
            assert shard in batch.shards[batch.datasets == dataset]


def test_replacements_are_spread_evenly_at_last() -> None:
    order = Order(0, one_dataset(5, 0, 20, 15), global_batch=8, window_shards=1)
    found = Counter(
        order.replacement(order.batch(step), place, NEAR_ATTEMPTS)
        for step in range(100)
        for place in range(8)
    )
    assert len(found) == 40
    assert chisquare(list(found.values())).pvalue > 1e-6  # 1 in 10^6


FULL_SCALE = """
import time
from pathlib import Path
import numpy as np
from data_pipeline.loading.order import DatasetCounts, Order
before = time.process_time()
counts = {f"bucket {n}": np.full(10_000, 1_250) for n in range(8)}
order = Order(0, [DatasetCounts(1.0, counts)], global_batch=3072, window_shards=16)
for step in (0, 12_345, order.first_step(3) + 20_000):
    order.batch(step)
print(order.samples_in_epoch(), time.process_time() - before)
# The kernel's ru_maxrss may be that of the process which started this one.
status = Path("/proc/self/status").read_text()
print(int(status.partition("VmHWM:")[2].split()[0]) / 1e6)
"""


def test_a_hundred_million_samples_are_ready_at_once_and_take_little_memory() -> None:
    output = subprocess.run(
        [sys.executable, "-c", FULL_SCALE], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(output[0]) == 100_000_000
    assert float(output[1]) < 10  # seconds of one core, after the imports
    assert float(output[2]) < 1  # gigabytes of the process, torch included
