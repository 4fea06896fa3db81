"""Bootstrap intervals at 95 % (Efron and Tibshirani, "An introduction to the bootstrap", 1993).

What is drawn again, with replacement, is what another run would have drawn anew: prompts for a
mean score, with all pictures of a prompt together since they are alike; rows of features for FID
and its kind. Two methods on the same prompts and seeds are compared by their differences, pair by
pair: what makes a prompt hard for both falls out.

Shape suffixes: N samples, P prompts, R draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from t2i.evaluation.feature_rows import Features, checked_rows

NUM_DRAWS = 1000
ENDS = (0.025, 0.975)
NORMAL_QUANTILE = 1.96
Scores = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval.

    Attributes:
        value: of all samples.
        low, high: the interval's ends.
        num: what was drawn from: prompts, or rows.
    """

    value: float
    low: float
    high: float
    num: int


def mean_interval(
    scores_N: Scores,
    generator: torch.Generator,
    prompts_N: Sequence[Hashable] | None = None,
    num_draws: int = NUM_DRAWS,
) -> Interval:
    """The mean over pictures, its interval over prompts.

    Args:
        scores_N: one a picture.
        generator: of the CPU; see `t2i.rng.generator`.
        prompts_N: the prompt of each picture; None = no two pictures share one.
        num_draws: how often prompts are drawn again; with few prompts (under 30 or so) any
            bootstrap's interval is somewhat narrow.

    Raises:
        ValueError: fewer than two prompts, not one prompt a score, or a score that is not finite.
    """
    return ratio_interval(scores_N, np.ones(len(scores_N)), generator, prompts_N, num_draws)


def ratio_interval(
    parts_N: Scores,
    wholes_N: Scores,
    generator: torch.Generator,
    prompts_N: Sequence[Hashable] | None = None,
    num_draws: int = NUM_DRAWS,
) -> Interval:
    """The sum of parts over the sum of wholes, such as objects found of objects named.

    Arguments and errors as in `mean_interval`, for both.

    Raises:
        ValueError: also if there is no whole.
    """
    ratios = ratio_draws(parts_N, wholes_N, generator, prompts_N, num_draws)
    low, high = np.quantile(ratios.draws_R, ENDS)
    return Interval(ratios.value, float(low), float(high), ratios.num_prompts)


@dataclass(frozen=True)
class Ratios:
    """What an interval is taken from; means of several such are taken draw by draw.

    Attributes:
        value: of all samples.
        draws_R: (R,) float64, the same of prompts that were drawn again.
        num_prompts: that were drawn from.
    """

    value: float
    draws_R: np.ndarray
    num_prompts: int


def ratio_draws(
    parts_N: Scores,
    wholes_N: Scores,
    generator: torch.Generator,
    prompts_N: Sequence[Hashable] | None = None,
    num_draws: int = NUM_DRAWS,
) -> Ratios:
    """See `ratio_interval`. A draw without any wholes takes the value of all samples."""
    parts, wholes = np.asarray(parts_N, np.float64), np.asarray(wholes_N, np.float64)
    prompts = range(len(parts)) if prompts_N is None else prompts_N
    if len(prompts) != len(parts) or len(wholes) != len(parts):
        raise ValueError(f"{len(parts)} scores, but {len(prompts)} prompts")
    if num_bad := int((~np.isfinite(parts) | ~np.isfinite(wholes)).sum()):
        raise ValueError(f"{num_bad} of {len(parts)} scores are NaN or infinite")
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    if len(numbers) < 2:
        raise ValueError(f"an interval needs two prompts or more; there are {len(numbers)}")
    if not wholes.sum():
        raise ValueError("there is nothing to take a share of")
    number_N = np.array([numbers[prompt] for prompt in prompts])
    part_P, whole_P = np.bincount(number_N, parts), np.bincount(number_N, wholes)
    value = float(parts.sum() / wholes.sum())
    draws_RP = _draws(num_draws, len(numbers), generator).numpy()
    part_R, whole_R = part_P[draws_RP].sum(axis=1), whole_P[draws_RP].sum(axis=1)
    draws_R = np.divide(part_R, whole_R, out=np.full(num_draws, value), where=whole_R > 0)
    return Ratios(value, draws_R, len(numbers))


def paired_interval(
    one_N: Scores,
    other_N: Scores,
    generator: torch.Generator,
    prompts_N: Sequence[Hashable] | None = None,
    num_draws: int = NUM_DRAWS,
) -> Interval:
    """The mean of one method's score minus the other's on the same prompts and seeds, in one order.

    Arguments and errors as in `mean_interval`.

    Raises:
        ValueError: also if the methods have different numbers of scores.
    """
    if len(one_N) != len(other_N):
        raise ValueError(f"{len(one_N)} scores of one method, {len(other_N)} of the other")
    differences_N = np.asarray(one_N, np.float64) - np.asarray(other_N, np.float64)
    return mean_interval(differences_N, generator, prompts_N, num_draws)


def resampled_interval(
    metric: Callable[[Tensor], float],
    features_ND: Features,
    generator: torch.Generator,
    num_draws: int = 100,
) -> Interval:
    """A function of a set of features, such as its FID to a reference, with rows drawn again.

    Rows drawn with replacement repeat, so FID of a draw lies above FID of the set. That shift is
    the bootstrap's own, so the draws are moved to have the value as their mean. The interval then
    tells how far another set of as many samples may differ, not how far more samples would lead.

    Args:
        metric: (N, D) -> number; called ``num_draws`` + 1 times.
        features_ND: (N, D).
        generator: of the CPU; see `t2i.rng.generator`.
        num_draws: how often rows are drawn again.

    Raises:
        ValueError: there are no features, or some are NaN or infinite.
    """
    rows_ND = checked_rows(features_ND)
    value = metric(rows_ND)
    values_R = np.array(
        [
            metric(rows_ND[_draws(1, len(rows_ND), generator)[0].to(rows_ND.device)])
            for _ in range(num_draws)
        ]
    )
    low, high = value + np.quantile(values_R - values_R.mean(), ENDS)
    return Interval(value, float(low), float(high), len(rows_ND))


def wilson_ends(num_right: float, num: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of ``num`` > 0 independent trials, within [0, 1].

    Where all trials agree a bootstrap has no width; this one has.
    """
    share, shrink = num_right / num, NORMAL_QUANTILE**2 / num
    center = (share + shrink / 2) / (1 + shrink)
    spread = share * (1 - share) / num + shrink / (4 * num)
    half = NORMAL_QUANTILE * math.sqrt(spread) / (1 + shrink)
    return max(center - half, 0.0), min(center + half, 1.0)


def share_ends(ratios: Ratios, num: float) -> tuple[float, float]:
    """Ends of a share's interval: the bootstrap's, or where that has no width Wilson's of ``num``."""
    low, high = (float(end) for end in np.quantile(ratios.draws_R, ENDS))
    return (low, high) if low < high else wilson_ends(ratios.value * num, num)


def _draws(num_draws: int, num: int, generator: torch.Generator) -> Tensor:
    """(R, num) int64 in [0, num)."""
    return torch.randint(num, (num_draws, num), generator=generator)
