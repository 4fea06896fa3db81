"""CMMD: squared maximum mean discrepancy of CLIP embeddings, times 1,000.

(Jayasumana et al., "Rethinking FID: towards a better evaluation metric for image generation",
arXiv 2401.09603; google-research/cmmd.)

    mean k(x, x') + mean k(y, y') - 2 mean k(x, y),    k(a, b) = exp(-||a - b||^2 / (2 sigma^2))

with sigma = 10. As in the authors' code the means are over all pairs, a row with itself included:
the biased estimator, which is never below 0. Embeddings are CLIP ViT-L/14's at 336 pixels, after
the projection, of length 1. On these the kernel stays between 0.98 and 1, so all is in float64.

Shape suffixes: N and M samples, D dimensions.
"""

from __future__ import annotations

from torch import Tensor

from t2i.evaluation.feature_rows import Features, checked_pair

SIGMA = 10.0
SCALE = 1000.0
LENGTH_TOLERANCE = 1e-2  # half precision's
BLOCK_SIZE = 4096  # rows and columns of the kernel at a time: 128 MiB


def cmmd(one_ND: Features, other_MD: Features, block_size: int = BLOCK_SIZE) -> float:
    """CMMD of two sets of embeddings, symmetric, on the device where they lie.

    Args:
        one_ND, other_MD: (N, D) and (M, D), any floating dtype, every row of length 1.
        block_size: the kernel is held in blocks of this many rows and columns.

    Raises:
        ValueError: rows not of length 1, sets of different widths, with NaN or infinity, or empty.
    """
    one, other = (rows.double() for rows in checked_pair(one_ND, other_MD))
    for rows in (one, other):
        error = float((rows.norm(dim=1) - 1).abs().max())
        if error > LENGTH_TOLERANCE:
            raise ValueError(f"embeddings must be of length 1; one is off by {error:.3g}")
    within = _mean_kernel(one, one, block_size) + _mean_kernel(other, other, block_size)
    return SCALE * (within - 2 * _mean_kernel(one, other, block_size))


def _mean_kernel(one_ND: Tensor, other_MD: Tensor, block_size: int) -> float:
    """Mean of the kernel over all N M pairs."""
    blocks = (
        (one, other) for one in one_ND.split(block_size) for other in other_MD.split(block_size)
    )
    return sum(_kernel_sum(*pair) for pair in blocks) / (len(one_ND) * len(other_MD))


def _kernel_sum(one_ND: Tensor, other_MD: Tensor) -> float:
    norms_N1, norms_M = one_ND.square().sum(dim=1, keepdim=True), other_MD.square().sum(dim=1)
    squared_NM = norms_N1 + norms_M - 2 * one_ND @ other_MD.T
    return float((-squared_NM / (2 * SIGMA**2)).exp().sum())
