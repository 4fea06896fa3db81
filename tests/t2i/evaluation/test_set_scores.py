"""Proves which mean and which interval a score has, and that groups count alike whatever their size."""

from __future__ import annotations

import pytest
import torch

from t2i.evaluation.set_scores import score_of_groups, score_of_pictures, score_of_set


def test_pictures_of_a_prompt_are_drawn_together() -> None:
    values = torch.tensor([1.0, 1.0, 3.0, 3.0])
    together = score_of_pictures("x", values, ["a", "a", "b", "b"], "higher")
    (score,) = together.scores
    assert (score.value, score.low, score.high, score.num, score.unit) == (2, 1, 3, 2, "prompts")
    assert together.per_picture == {"x": [1, 1, 3, 3]}
    (apart,) = score_of_pictures("x", values, None, "higher").scores
    assert (apart.num, apart.unit) == (4, "pictures")
    (alone,) = score_of_pictures("x", values, ["a"] * 4, "higher").scores
    assert (alone.value, alone.low) == (2, None)


def test_a_picture_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="no finite number"):
        score_of_pictures("x", torch.tensor([1.0, torch.nan]), None, "higher")


def test_a_set_has_an_interval_from_its_draws_alone() -> None:
    rows = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    score = score_of_set("x", lambda some: float(some.square().mean()), rows, 20, "lower")
    assert score.low is not None
    assert score.high is not None
    assert 0 <= score.low < score.value < score.high
    assert score_of_set("x", lambda some: 1.0, rows, 0, "lower").low is None
    floor = score_of_set("x", lambda some: float(some.mean().abs()) / 9, rows, 20, "lower")
    assert floor.low is not None
    assert floor.low >= 0


def test_the_overall_score_is_the_mean_of_the_groups_means() -> None:
    """HPSv3's table: SG Table 4's categories of CFG have the mean 9.33, not that of all prompts."""
    values = torch.tensor([1.0, 1.0, 1.0, 1.0, 5.0, 7.0])
    prompts = list("abcdef")
    groups = ["big"] * 4 + ["small"] * 2
    found = {s.name: s for s in score_of_groups(values, groups, prompts, "higher")}
    assert (found["big"].value, found["small"].value, found["overall"].value) == (1, 6, 3.5)
    assert (found["overall"].low, found["overall"].high) == (3, 4)
    assert found["overall"].num == 6
    lonely = score_of_groups(values, ["x"] * 5 + ["y"], prompts, "higher")
    assert [score.low is None for score in lonely] == [False, True, True]
