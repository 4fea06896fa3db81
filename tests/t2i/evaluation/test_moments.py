"""Proves that mean and covariance are numpy's, however the features are cut, merged or spread over
processes, and that features which no statistics can be made of are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from t2i.evaluation.moments import Moments, Statistics, note_of_few, statistics_of

PROCESS = """
import sys
import numpy as np
import torch.distributed as dist
from t2i.evaluation.moments import Moments

rank, store, features = int(sys.argv[1]), sys.argv[2], np.load(sys.argv[3])
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=3)
for last in (20, 0):  # of the second and third process: of different sizes, and nothing at all
    moments = Moments(features.shape[1])
    rows = (features[last:], features[:last // 4], features[last // 4:last])[rank]
    if len(rows):
        moments.add(rows)
    moments.all_reduce()
    statistics = moments.statistics()
    np.savez(f"{store}-{rank}-{last}.npz", m=statistics.mean_D, s=statistics.covariance_DD)
dist.destroy_process_group()
"""


def features(num: int = 90, width: int = 7) -> np.ndarray:
    """Correlated features far from 0, where sums of squares would cancel."""
    rng = np.random.default_rng(0)
    return 1000 + rng.normal(size=(num, width)) @ rng.normal(size=(width, width))


def check(statistics: Statistics, features_ND: np.ndarray) -> None:
    assert statistics.mean_D.dtype == statistics.covariance_DD.dtype == np.float64
    np.testing.assert_allclose(statistics.mean_D, features_ND.mean(axis=0), rtol=1e-12)
    expected = np.cov(features_ND, rowvar=False)
    np.testing.assert_allclose(statistics.covariance_DD, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cuts", [[], [1], [30, 31, 77]])
def test_batches_give_the_statistics_of_the_whole(cuts: list[int]) -> None:
    moments = Moments(7)
    for batch in np.split(features(), cuts):
        moments.add(batch)
    assert moments.num == 90
    check(moments.statistics(), features())


def test_half_precision_is_added_in_double() -> None:
    rows = torch.tensor(features()).sub(1000).half()
    check(statistics_of(rows), rows.double().numpy())


def test_three_merged_are_one() -> None:
    parts = [Moments(7) for _ in range(4)]  # one has seen nothing
    for part, rows in zip(parts, np.split(features(), [10, 50]), strict=False):
        part.add(rows)
    whole = Moments(7)
    whole.merge(parts)
    assert whole.num == 90
    check(whole.statistics(), features())


@pytest.mark.slow
def test_three_processes_are_one(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", features())
    arguments = [str(tmp_path / "store"), str(tmp_path / "features.npy")]
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, rank, *arguments]) for rank in "012"
    ]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    for name in (f"{rank}-{last}" for rank in range(3) for last in (20, 0)):
        with np.load(tmp_path / f"store-{name}.npz") as arrays:
            check(Statistics(arrays["m"], arrays["s"]), features())


def test_one_process_has_all_already() -> None:
    moments = Moments(7)
    moments.add(features())
    moments.all_reduce()
    check(moments.statistics(), features())


def test_broken_rows_are_counted() -> None:
    rows = features()
    rows[[3, 5], 2] = np.nan
    rows[5, 4] = np.inf
    with pytest.raises(ValueError, match="2 of 90 rows of features hold NaN"):
        statistics_of(rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((0, 7)), "there are no features"),
        (np.zeros((3, 6)), "6 dimensions, those before had 7"),
        (np.zeros(7), "must be"),
    ],
)
def test_what_is_no_batch_is_refused(rows: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Moments(7).add(rows)


@pytest.mark.parametrize("num", [0, 1])
def test_a_covariance_needs_two_samples(num: int) -> None:
    moments = Moments(7)
    if num:
        moments.add(features(1))
    with pytest.raises(ValueError, match=f"there are {num}"):
        moments.statistics()


def test_fewer_samples_than_dimensions_have_a_note_and_the_same_covariance() -> None:
    assert note_of_few(7, 7) == []
    assert "not of full rank" in note_of_few(6, 7)[0]
    for num in (6, 8):
        found = statistics_of(features(num))
        assert (found.rows_RD is not None) == (num < 7)
        np.testing.assert_allclose(
            found.factor_DR @ found.factor_DR.T, found.covariance_DD, rtol=1e-9, atol=1e-9
        )
