"""Token routing (TREAD): which tokens run the routed layers, how they leave and come back.

Shape suffixes: B samples, T tokens, K kept tokens, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from t2i import rng


def num_kept(num_tokens: int, gamma: float) -> int:
    """T - floor(gamma T): how many tokens run the routed layers at sparsity gamma.

    Raises:
        ValueError: gamma outside [0, 1).
    """
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must be in [0, 1), got {gamma}; 0 is dense, 0.5 skips half")
    # the rounding undoes products such as 0.29 * 100 = 28.999999999999996
    return num_tokens - math.floor(round(gamma * num_tokens, 6))


def draw_keep_ids(
    seed: int,
    stream: str,
    step: int,
    sample_ids_B: Tensor,
    num_tokens: int,
    gamma: float,
    device: torch.device | str = "cpu",
) -> Tensor:
    """A uniform draw without replacement of `num_kept` tokens per sample.

    The same (seed, stream, step, sample) at a larger gamma keeps a subset of the same tokens; give
    each guidance branch its own stream for independent draws.

    Returns:
        (B, K) int64, ascending in each row, the same on every device.

    Raises:
        ValueError: gamma outside [0, 1).
    """
    count = num_kept(num_tokens, gamma)
    words_BT = rng.words(seed, stream, step, sample_ids_B.to(device), num_tokens)
    shuffled_BT = words_BT.argsort(dim=1, stable=True)
    return shuffled_BT[:, :count].sort(dim=1).values


def gather_tokens(tokens_BTD: Tensor, keep_ids_BK: Tensor) -> Tensor:
    """The kept tokens, (B, K, D)."""
    return (
        tokens_BTD.flatten(0, 1)
        .index_select(0, _flat_ids(tokens_BTD, keep_ids_BK))
        .unflatten(0, keep_ids_BK.shape)
    )


def scatter_tokens(tokens_BTD: Tensor, kept_BKD: Tensor, keep_ids_BK: Tensor) -> Tensor:
    """`tokens_BTD` with the kept tokens put back in their places; the others are unchanged."""
    flat_ids = _flat_ids(tokens_BTD, keep_ids_BK)
    merged = tokens_BTD.flatten(0, 1).index_copy(0, flat_ids, kept_BKD.flatten(0, 1))
    return merged.view_as(tokens_BTD)


def _flat_ids(tokens_BTD: Tensor, keep_ids_BK: Tensor) -> Tensor:
    """(B K,) rows of the flattened tokens: one index_select is far faster than an expanded gather."""
    batch, num_tokens = tokens_BTD.shape[:2]
    offsets_B1 = torch.arange(0, batch * num_tokens, num_tokens, device=keep_ids_BK.device)
    return (keep_ids_BK + offsets_B1.unsqueeze(1)).flatten()
