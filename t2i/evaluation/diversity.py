"""How different the pictures of one prompt are, by their features. Knows no network.

Shape suffixes: N pictures, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def diversity_of_prompts(features_ND: Tensor, prompts: Sequence[str]) -> Tensor:
    """Mean distance of each picture to the others of its prompt: (N,) float64.

    Raises:
        ValueError: a prompt that has one picture alone.
    """
    rows_of: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows_of.setdefault(prompt, []).append(row)
    result_N = torch.zeros(len(prompts), dtype=torch.float64)
    for prompt, rows in rows_of.items():
        if len(rows) < 2:
            raise ValueError(
                f"diversity: {prompt!r} has one picture, others have several; make as many of each"
            )
        own = features_ND[rows].double()
        distances = torch.cdist(own, own, compute_mode="donot_use_mm_for_euclid_dist")
        result_N[rows] = distances.sum(dim=1) / (len(rows) - 1)
    return result_N


def mean_distance(features_ND: Tensor) -> float:
    """Mean distance of two different pictures of a set of two or more."""
    own = features_ND.double()
    distances = torch.cdist(own, own, compute_mode="donot_use_mm_for_euclid_dist")
    return float(distances.sum() / (len(own) * (len(own) - 1)))
