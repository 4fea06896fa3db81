"""Proves precision and recall on points of a plane where they can be counted, against all distances
at once in float64, and whatever the size of blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from t2i.evaluation.precision_recall import PrecisionRecall, precision_recall


def oracle(reference: np.ndarray, samples: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Sorted, a row's distances begin with its own 0."""
    radii, sample_radii = (np.sort(cdist(rows, rows))[:, k] for rows in (reference, samples))
    distances = cdist(reference, samples)
    precision = (distances <= radii[:, None]).any(axis=0).mean()
    return float(precision), float((distances <= sample_radii).any(axis=1).mean())


def shares(found: PrecisionRecall) -> tuple[float, float]:
    return found.precision, found.recall


def square(x: float, y: float, side: float = 1) -> np.ndarray:
    """Four corners: each has its third neighbour at the diagonal, sqrt(2) sides away."""
    return np.array([(x, y), (x + side, y), (x, y + side), (x + side, y + side)], float)


def test_a_set_covers_itself() -> None:
    points = np.random.default_rng(0).normal(size=(40, 5))
    assert shares(precision_recall(points, points)) == (1, 1)


def test_sets_far_apart_share_nothing() -> None:
    assert shares(precision_recall(square(0, 0), square(50, 0))) == (0, 0)


def test_a_mode_that_is_missing_costs_recall_alone() -> None:
    reference = np.concatenate((square(0, 0), square(50, 0), square(0, 50), square(50, 50)))
    assert shares(precision_recall(reference, square(50, 0))) == (1, 0.25)


def test_pictures_out_of_the_way_cost_precision_alone() -> None:
    samples = np.concatenate((square(0, 0), square(50, 0)))
    assert shares(precision_recall(square(0, 0), samples)) == (0.5, 1)


@pytest.mark.parametrize(("distance", "precision"), [(1.41, 0.25), (1.42, 0)])
def test_a_ball_reaches_to_the_third_neighbor(distance: float, precision: float) -> None:
    """One sample stands beside a corner of the reference's square, whose balls reach to 1.414."""
    samples = np.concatenate(([[1 + distance, 0]], square(90, 90, 0.1)[:3]))
    assert precision_recall(square(0, 0), samples).precision == precision


@pytest.mark.parametrize("block_size", [1, 7, 60, 4096])
def test_blocks_of_any_size_give_what_all_distances_give(block_size: int) -> None:
    rng = np.random.default_rng(0)
    reference, samples = rng.normal(size=(60, 6)), 0.7 + 0.8 * rng.normal(size=(83, 6))
    found = precision_recall(reference, samples, block_size=block_size)
    expected = oracle(reference, samples)
    assert 0.1 < min(expected) < max(expected) < 0.9
    assert (found.precision, found.recall) == pytest.approx(expected, abs=1e-12)


def test_a_far_mean_does_not_cancel_the_distances() -> None:
    """In float32, squares of 1e4 leave nothing of distances of about 1."""
    rng = np.random.default_rng(1)
    reference = (1e4 + rng.normal(size=(100, 8))).astype(np.float32)
    samples = (1e4 + 1 + rng.normal(size=(100, 8))).astype(np.float32)
    found = precision_recall(torch.from_numpy(reference), samples)
    assert (found.precision, found.recall) == oracle(reference, samples)


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="samples: 3 pictures, but each needs 3 neighbours"):
        precision_recall(square(0, 0), square(0, 0)[:3])


def test_features_of_two_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 3 dimensions"):
        precision_recall(square(0, 0), np.zeros((9, 3)))
