"""Proves the Frechet distance against closed forms of Gaussians and against scipy's root of the
product, and that covariances without full rank give neither NaN nor a number below 0."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg

from t2i.evaluation.frechet import frechet_distance
from t2i.evaluation.moments import Statistics, statistics_of


def features(seed: int, num: int, width: int) -> np.ndarray:
    """Correlated features with a mean of their own."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=width) + rng.normal(size=(num, width)) @ rng.normal(size=(width, width))


def oracle(one_ND: np.ndarray, other_MD: np.ndarray) -> float:
    """ADM's evaluator in a few lines."""
    cov_1, cov_2 = np.cov(one_ND, rowvar=False), np.cov(other_MD, rowvar=False)
    step = one_ND.mean(axis=0) - other_MD.mean(axis=0)
    root = scipy.linalg.sqrtm(cov_1 @ cov_2)
    return float(step @ step + np.trace(cov_1 + cov_2) - 2 * np.trace(root).real)


@pytest.mark.parametrize(("num_one", "num_other"), [(300, 300), (300, 70)])
def test_it_is_that_of_scipys_root(num_one: int, num_other: int) -> None:
    one, other = features(0, num_one, 24), features(1, num_other, 24)
    expected = oracle(one, other)
    found = frechet_distance(statistics_of(one), statistics_of(other))
    assert found == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(statistics_of(other), statistics_of(one)) == pytest.approx(found)


def test_gaussians_that_commute_have_a_closed_form() -> None:
    """With one basis for both, it is the distance of the means and of the deviations."""
    rng = np.random.default_rng(0)
    basis = scipy.linalg.qr(rng.normal(size=(16, 16)))[0]
    means, deviations = rng.normal(size=(2, 16)), rng.uniform(0.01, 3, size=(2, 16))
    one, other = (
        Statistics(mean, (basis * deviation**2) @ basis.T)
        for mean, deviation in zip(means, deviations, strict=True)
    )
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((deviations[0] - deviations[1]) ** 2)
    assert frechet_distance(one, other) == pytest.approx(expected, abs=1e-9)


def test_two_dimensions_have_a_closed_form_in_any_basis() -> None:
    """tr (S1 S2)^1/2 = sqrt(tr S1 S2 + 2 sqrt(det S1 S2)), by Cayley and Hamilton."""
    one, other = (statistics_of(features(seed, 50, 2)) for seed in (2, 3))
    product = one.covariance_DD @ other.covariance_DD
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    step = one.mean_D - other.mean_D
    expected = step @ step + np.trace(one.covariance_DD + other.covariance_DD) - 2 * root
    assert frechet_distance(one, other) == pytest.approx(expected, abs=1e-9)


def test_one_dimension_is_enough() -> None:
    one, other = Statistics(np.zeros(1), np.eye(1) * 4), Statistics(np.ones(1), np.eye(1) * 9)
    assert frechet_distance(one, other) == pytest.approx(2)


def stored(statistics: Statistics) -> Statistics:
    """As from a file: the covariance alone, whatever it was made of."""
    return Statistics(statistics.mean_D, statistics.covariance_DD)


@pytest.mark.parametrize("as_is", [lambda own: own, stored])
@pytest.mark.parametrize("num", [2, 10, 33, 200])
def test_a_set_is_at_0_from_itself(num: int, as_is: Callable[[Statistics], Statistics]) -> None:
    own = as_is(statistics_of(features(0, num, 32)))
    assert 0 <= frechet_distance(own, own) < 1e-10 * np.trace(own.covariance_DD)


@pytest.mark.parametrize("as_is", [lambda own: own, stored])
def test_few_samples_have_a_closed_form_within_their_subspaces(
    as_is: Callable[[Statistics], Statistics],
) -> None:
    """Sets in subspaces at right angles share no variance: the last trace is 0, exactly."""
    one, other = np.zeros((6, 40)), np.zeros((6, 40))
    one[:, :20], other[:, 20:] = features(0, 6, 20), features(1, 6, 20)
    step = one.mean(axis=0) - other.mean(axis=0)
    expected = step @ step + one.var(axis=0, ddof=1).sum() + other.var(axis=0, ddof=1).sum()
    basis = scipy.linalg.qr(np.random.default_rng(0).normal(size=(40, 40)))[0]
    both = [as_is(statistics_of(rows @ basis)) for rows in (one, other)]
    found = frechet_distance(*both)
    assert found == pytest.approx(expected, rel=1e-12)


def test_few_samples_of_one_subspace_are_as_within_it() -> None:
    """Features of rank 5 in 40 dimensions are as far apart as in their 5 coordinates."""
    one, other = features(0, 30, 5), features(1, 30, 5)
    embed = scipy.linalg.qr(np.random.default_rng(0).normal(size=(40, 40)))[0][:5]
    found = frechet_distance(statistics_of(one @ embed), statistics_of(other @ embed))
    assert found == pytest.approx(oracle(one, other), rel=1e-9)


def test_sets_without_spread_are_as_far_apart_as_their_means() -> None:
    one, other = Statistics(np.zeros(3), np.zeros((3, 3))), Statistics(np.ones(3), np.eye(3))
    assert frechet_distance(one, other) == pytest.approx(6)
    assert frechet_distance(one, one) == 0


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Statistics(np.zeros(2), np.eye(2)), "3 and 2 dimensions"),
        (Statistics(np.zeros(3), np.full((3, 3), np.nan)), "NaN"),
        (Statistics(np.full(3, np.inf), np.eye(3)), "infinity"),
        (Statistics(np.zeros(3), np.diag([-1.0, 1, 1])), "no covariance"),
    ],
)
def test_what_has_no_distance_is_refused(other: Statistics, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(Statistics(np.zeros(3), np.eye(3)), other)
