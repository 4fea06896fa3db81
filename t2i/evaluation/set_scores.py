"""Scores, with their intervals, of numbers that belong to a whole set or to single pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from t2i import rng
from t2i.evaluation.intervals import mean_interval, resampled_interval
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
    name: str, values_N: Tensor, prompts: Sequence[str] | None, better: Better
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
