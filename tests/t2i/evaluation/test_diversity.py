"""Proves the diversity of prompts against distances written out, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from t2i.evaluation.diversity import diversity_of_prompts, mean_distance


def test_a_picture_s_diversity_is_its_mean_distance_to_the_others_of_its_prompt() -> None:
    features = torch.tensor([[0.0, 0.0], [9.0, 9.0], [3.0, 4.0], [6.0, 8.0], [9.0, 9.0]])
    prompts = ["a", "b", "a", "a", "b"]
    # within a: 5, 10, 5; within b: twice the same
    expected = torch.tensor([7.5, 0.0, 5.0, 7.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(diversity_of_prompts(features, prompts), expected)


def test_the_mean_distance_of_a_set_leaves_out_each_picture_s_own() -> None:
    assert mean_distance(torch.tensor([[0.0], [1.0], [3.0]])) == pytest.approx((1 + 3 + 2) / 3)


def test_near_pictures_far_from_the_origin_keep_their_distance() -> None:
    """Differences of squares would lose it."""
    features = torch.tensor([[1e4, 0.0], [1e4, 1e-2]])
    assert diversity_of_prompts(features, ["a", "a"])[0] == pytest.approx(1e-2, rel=1e-3)


def test_a_prompt_with_one_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="'b' has one picture, others have several"):
        diversity_of_prompts(torch.zeros(3, 2), ["a", "a", "b"])
