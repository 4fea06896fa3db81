"""Improved precision and recall (Kynkaanniemi et al., "Improved precision and recall metric for
assessing generative models", 2019), as ADM's evaluator defines them.

The manifold of a set is the union of balls around its members, each reaching to the member's k-th
nearest neighbour, itself not counted (k = 3).

    precision    share of samples within the manifold of the reference: do samples look right?
    recall       share of the reference within the manifold of samples: is all of it covered?

Distances are ||x||^2 + ||y||^2 - 2 x y in float32, block by block. Both sets are moved so that the
reference has mean 0, which changes no distance but keeps the terms as small as they can be, so
that little cancels. (ADM multiplies in float16 where that is finite; ours are the finer ones.)

Shape suffixes: N references, M samples, D dimensions, A and B rows of blocks, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from t2i.evaluation.feature_rows import Features, checked_pair

NUM_NEIGHBORS = 3
BLOCK_SIZE = 4096  # rows and columns of distances at a time: 64 MiB


@dataclass(frozen=True)
class PrecisionRecall:
    """What lies within which manifold.

    Attributes:
        is_precise_M: (M,) bool, samples within the reference's.
        is_covered_N: (N,) bool, references within the samples'.
    """

    is_precise_M: Tensor
    is_covered_N: Tensor

    @property
    def precision(self) -> float:
        """In [0, 1]."""
        return float(self.is_precise_M.double().mean())

    @property
    def recall(self) -> float:
        """In [0, 1]."""
        return float(self.is_covered_N.double().mean())


def precision_recall(
    reference_ND: Features,
    samples_MD: Features,
    num_neighbors: int = NUM_NEIGHBORS,
    block_size: int = BLOCK_SIZE,
) -> PrecisionRecall:
    """Compare samples with a reference on the device where the features lie.

    Both numbers depend on the sizes of the sets: the papers take 50,000 samples against ADM's
    10,000 references.

    Args:
        reference_ND, samples_MD: (N, D) and (M, D), Inception's pooled features.
        num_neighbors: k.
        block_size: distances are held in blocks of this many rows and columns.

    Raises:
        ValueError: sets of different widths, with NaN or infinity, or of k members or fewer.
    """
    reference, samples = checked_pair(reference_ND, samples_MD)
    for name, features in (("reference", reference), ("samples", samples)):
        if len(features) <= num_neighbors:
            raise ValueError(
                f"{name}: {len(features)} pictures, but each needs {num_neighbors} neighbours"
            )
    center_D = reference.double().mean(dim=0).float()
    reference, samples = reference.float() - center_D, samples.float() - center_D
    reference_radii_N = _squared_radii(reference, num_neighbors, block_size)
    sample_radii_M = _squared_radii(samples, num_neighbors, block_size)

    is_covered_N = torch.zeros_like(reference_radii_N, dtype=torch.bool)
    is_precise_M = torch.zeros_like(sample_radii_M, dtype=torch.bool)
    for rows in _blocks(len(reference), block_size):
        for columns in _blocks(len(samples), block_size):
            distances_AB = _squared_distances(reference[rows], samples[columns])
            is_precise_M[columns] |= (distances_AB <= reference_radii_N[rows, None]).any(dim=0)
            is_covered_N[rows] |= (distances_AB <= sample_radii_M[None, columns]).any(dim=1)
    return PrecisionRecall(is_precise_M, is_covered_N)


def _squared_radii(rows_ND: Tensor, num_neighbors: int, block_size: int) -> Tensor:
    """(N,) squared distances to each row's k-th nearest other row."""
    radii = []
    for rows in _blocks(len(rows_ND), block_size):
        nearest_AK = rows_ND.new_full((len(rows_ND[rows]), num_neighbors), torch.inf)
        for columns in _blocks(len(rows_ND), block_size):
            distances_AB = _squared_distances(rows_ND[rows], rows_ND[columns])
            if rows == columns:
                distances_AB.fill_diagonal_(torch.inf)  # itself
            near_AB = torch.cat((nearest_AK, distances_AB), dim=1)
            nearest_AK = near_AB.topk(num_neighbors, dim=1, largest=False).values
        radii.append(nearest_AK.amax(dim=1))
    return torch.cat(radii)


def _squared_distances(one_AD: Tensor, other_BD: Tensor) -> Tensor:
    """(A, B), not below 0."""
    norms_A1, norms_B = one_AD.square().sum(dim=1, keepdim=True), other_BD.square().sum(dim=1)
    return torch.addmm(norms_A1 + norms_B, one_AD, other_BD.T, alpha=-2).clamp_(min=0)


def _blocks(num: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, num)) for start in range(0, num, size)]
