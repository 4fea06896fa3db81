"""Scores, with their intervals, of numbers that belong to a whole set or to single pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from t2i import rng
from t2i.evaluation.intervals import (
    ENDS,
    Interval,
    mean_interval,
    paired_interval,
    ratio_draws,
    resampled_interval,
)
from t2i.evaluation.metric import Score, Scores

Better = Literal["higher", "lower"]


def score_of_set(
    name: str, metric: Callable[[Tensor], float], rows_ND: Tensor, num_draws: int, better: Better
) -> Score:
    """A number of a whole set of rows, such as FID; a bootstrap over pictures if there are draws.

    Raises:
        ValueError: as ``metric`` does, or rows with NaN.
    """
    if not num_draws:
        return Score(name, metric(rows_ND), None, None, len(rows_ND), "pictures", better)
    found = resampled_interval(metric, rows_ND, rng.generator(0, "bootstrap", 0, 0), num_draws)
    # No such number is below 0, though draws that are moved to have its mean may be.
    ends = max(found.low, 0.0), max(found.high, 0.0)
    return Score(name, found.value, *ends, found.num, "pictures", better)


def score_of_pictures(
    name: str, values_N: Tensor, prompts: Sequence[str] | None, better: Better | None
) -> Scores:
    """The mean of a number of each picture, with a bootstrap over prompts, or over pictures.

    Of a single prompt there is no interval.

    Raises:
        ValueError: values that are NaN or infinite.
    """
    values = values_N.double().numpy()
    if not len(values) or not values_N.isfinite().all():
        raise ValueError(f"{name}: some of {len(values)} pictures have no finite number")
    distinct = len(values) if prompts is None else len(set(prompts))
    unit = "pictures" if prompts is None else "prompts"
    if distinct < 2:
        score = Score(name, float(values.mean()), None, None, distinct, unit, better)
    else:
        found = mean_interval(values, rng.generator(0, "bootstrap", 0, 0), prompts)
        score = Score(name, found.value, found.low, found.high, found.num, unit, better)
    return Scores([score], per_picture={name: values.tolist()})


def score_of_groups(
    values_N: Tensor,
    groups_N: Sequence[str],
    prompts_N: Sequence[str],
    better: Better,
    is_share: bool = False,
) -> list[Score]:
    """The mean of each group, by name, then ``overall``: the mean of the groups' means.

    Intervals are bootstraps over the prompts of each group; a group of one prompt has none, and
    leaves the overall score without one.

    Raises:
        ValueError: there are no values, or some are NaN or infinite.
    """
    values = values_N.double().numpy()
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"some of {len(values)} pictures have no finite number")
    generator = rng.generator(0, "bootstrap", 0, 0)
    scores: list[Score] = []
    draws, means = [], []
    for group in sorted(set(groups_N)):
        own = [number for number, name in enumerate(groups_N) if name == group]
        prompts = [prompts_N[number] for number in own]
        mean, num = float(values[own].mean()), len(set(prompts))
        means.append(mean)
        if num < 2:
            scores.append(Score(group, mean, None, None, num, "prompts", better, is_share))
            continue
        ratios = ratio_draws(values[own], np.ones(len(own)), generator, prompts)
        draws.append(ratios.draws_R)
        low, high = (float(end) for end in np.quantile(ratios.draws_R, ENDS))
        scores.append(Score(group, mean, low, high, num, "prompts", better, is_share))
    overall, num = float(np.mean(means)), len(set(prompts_N))
    if len(draws) < len(means):
        return [*scores, Score("overall", overall, None, None, num, "prompts", better, is_share)]
    low, high = (float(end) for end in np.quantile(np.mean(draws, axis=0), ENDS))
    return [*scores, Score("overall", overall, low, high, num, "prompts", better, is_share)]


def paired_differences(
    own: Mapping[str, Sequence[float]], base: Mapping[str, Sequence[float]], prompts: Sequence[str]
) -> Iterator[tuple[str, Interval]]:
    """For each number that two sets of the same prompts and seeds have of every picture: own - base.

    Args:
        own, base: `Scores.per_picture` of the two.
        prompts: of the pictures; of fewer than two different ones there is no difference to tell.
    """
    if len(set(prompts)) < 2:
        return
    for name, values in own.items():
        if name in base and len(values) == len(base[name]):
            generator = rng.generator(0, "bootstrap", 0, 0)
            yield name, paired_interval(values, base[name], generator, prompts)
