"""Proves that bootstrap intervals cover what they should as often as they should, on seeded
simulations, and that pairs and prompts are kept together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from t2i import rng
from t2i.evaluation.frechet import frechet_distance
from t2i.evaluation.intervals import Interval, mean_interval, paired_interval, resampled_interval
from t2i.evaluation.moments import Statistics, statistics_of

PROMPTS = np.repeat(np.arange(50), 4).tolist()


def generator(seed: int = 0) -> torch.Generator:
    return rng.generator(seed, "bootstrap", 0, 0)


def width(interval: Interval) -> float:
    return interval.high - interval.low


def scores_of_prompts(numbers: np.random.Generator) -> np.ndarray:
    """Four pictures of each of 50 prompts; prompts differ more than their pictures. Mean 3."""
    return 3 + np.repeat(numbers.normal(size=50), 4) + 0.3 * numbers.normal(size=200)


def test_the_mean_of_many_has_the_normal_interval() -> None:
    scores = np.random.default_rng(0).normal(size=2000)
    found = mean_interval(scores, generator())
    half = 1.96 * scores.std() / np.sqrt(2000)
    assert (found.value, found.num) == (pytest.approx(scores.mean()), 2000)
    assert found.low == pytest.approx(scores.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(scores.mean() + half, abs=0.15 * half)


def test_nineteen_of_twenty_intervals_over_prompts_hold_the_mean() -> None:
    """Of 200, 178 to 197 (of 50 prompts about 94 % are to be expected); of images alone, far fewer."""
    numbers = np.random.default_rng(0)
    by_prompt = by_image = 0
    for seed in range(200):
        scores = scores_of_prompts(numbers)
        found = mean_interval(scores, generator(seed), PROMPTS, num_draws=200)
        alone = mean_interval(scores, generator(seed), num_draws=200)
        by_prompt += found.low <= 3 <= found.high
        by_image += alone.low <= 3 <= alone.high
    assert 178 <= by_prompt <= 197
    assert by_image < 160


def test_prompts_with_more_pictures_weigh_more() -> None:
    found = mean_interval([1, 1, 1, 5], generator(), ["cat", "cat", "cat", "dog"])
    assert (found.value, found.num) == (2, 2)
    assert (found.low, found.high) == (1, 5)


def test_a_paired_difference_is_narrower_than_the_methods_apart() -> None:
    numbers = np.random.default_rng(0)
    one = scores_of_prompts(numbers)
    other = one + 0.2 + 0.1 * numbers.normal(size=200)
    found = paired_interval(other, one, generator(), PROMPTS)
    assert found.value == pytest.approx(0.2, abs=0.02)
    assert 0 < found.low < found.value < found.high
    apart = [mean_interval(scores, generator(), PROMPTS) for scores in (one, other)]
    assert width(found) < 0.2 * min(map(width, apart))


def test_nineteen_of_twenty_intervals_of_a_frechet_distance_hold_its_mean() -> None:
    """Of 40 sets of 60 samples, 33 or more hold the mean over sets of that size: the bootstrap's
    upward shift is taken out. With it, the value itself would often lie below its interval."""
    numbers = np.random.default_rng(0)
    reference = Statistics(np.ones(4), np.eye(4))

    def distance(rows_ND: Tensor) -> float:
        return frechet_distance(statistics_of(rows_ND), reference)

    mean = np.mean([distance(torch.tensor(numbers.normal(size=(60, 4)))) for _ in range(500)])
    found = [
        resampled_interval(distance, numbers.normal(size=(60, 4)), generator(seed), num_draws=60)
        for seed in range(40)
    ]
    assert all(interval.low < interval.value < interval.high for interval in found)
    assert sum(interval.low <= mean <= interval.high for interval in found) >= 33


def test_the_seed_decides() -> None:
    scores = np.random.default_rng(0).normal(size=40)
    one, again, other = (mean_interval(scores, generator(seed)) for seed in (0, 0, 1))
    assert one == again != other


@pytest.mark.parametrize(
    ("scores", "prompts", "message"),
    [
        ([1.0, 2.0], ["cat"], "2 scores, but 1 prompts"),
        ([1.0, 2.0], ["cat", "cat"], "two prompts or more; there are 1"),
        ([], None, "there are 0"),
        ([1.0, np.nan], None, "1 of 2 scores are NaN"),
    ],
)
def test_what_has_no_interval_is_refused(
    scores: list[float], prompts: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mean_interval(scores, generator(), prompts)


def test_methods_with_different_numbers_of_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="2 scores of one method, 3 of the other"):
        paired_interval([1, 2], [1, 2, 3], generator())


def test_a_distance_lies_within_its_own_interval() -> None:
    """Draws with replacement alone lie above it: their rows repeat."""
    features_ND = np.random.default_rng(0).normal(size=(60, 16))
    target = Statistics(np.zeros(16), np.eye(16))

    def metric(rows_ND: Tensor) -> float:
        return frechet_distance(statistics_of(rows_ND), target)

    found = resampled_interval(metric, features_ND, generator(), 50)
    assert found.low < found.value < found.high
