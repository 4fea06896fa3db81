"""Mean and covariance of features in float64, batch by batch and over processes.

Sums of squares would cancel where the mean is large, so batches are merged by their means and
scatters (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances", 1979):

    mean    = (n1 mean1 + n2 mean2) / n
    scatter = scatter1 + scatter2 + n1 n2 / n (mean2 - mean1) (mean2 - mean1)^T

The covariance is scatter / (n - 1), as ADM's evaluator has it (np.cov with rowvar=False).

Shape suffixes: N samples, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.distributed as dist
from scipy.linalg import eigh
from torch import Tensor

from t2i.evaluation.feature_rows import Features, checked_rows

NEGATIVE_AT_MOST = 1e-4  # of the largest eigenvalue: statistics that were stored in half precision


@dataclass(frozen=True)
class Statistics:
    """A Gaussian's parameters, all that a Frechet distance sees of a set.

    Attributes:
        mean_D: (D,) float64.
        covariance_DD: (D, D) float64, symmetric.
        rows_RD: (R, D) with rows^T rows = the covariance, where such are at hand.
    """

    mean_D: np.ndarray
    covariance_DD: np.ndarray
    rows_RD: np.ndarray | None = None

    @cached_property
    def factor_DR(self) -> np.ndarray:
        """A (D, R) with A A^T = the covariance.

        Eigenvalues below the rounding error of the largest are taken as the zeros that they are for
        too few samples.

        Raises:
            ValueError: NaN or infinity, or eigenvalues that are negative.
        """
        if not np.isfinite(self.mean_D).all() or not np.isfinite(self.covariance_DD).all():
            raise ValueError("the statistics hold NaN or infinity")
        if self.rows_RD is not None:
            return self.rows_RD.T
        values_D, vectors_DD = eigh(self.covariance_DD, driver="evd")
        if values_D[0] < -NEGATIVE_AT_MOST * abs(values_D[-1]):
            raise ValueError(
                "this is no covariance: its eigenvalues go from "
                f"{values_D[0]:.3g} to {values_D[-1]:.3g}"
            )
        smallest = len(values_D) * np.finfo(np.float64).eps * values_D[-1]
        # One column at least, so that sets without any spread have a distance.
        first = min(np.searchsorted(values_D, smallest, side="right"), len(values_D) - 1)
        return vectors_DD[:, first:] * np.sqrt(values_D[first:].clip(min=0))


class Moments:
    """What was seen so far: ``num`` samples, their mean and their scatter around it."""

    def __init__(self, num_dimensions: int, device: torch.device | str = "cpu") -> None:
        """``device`` holds D x D float64 numbers; for a group on NCCL it must be a GPU."""
        self.num = 0
        self.mean_D = torch.zeros(num_dimensions, dtype=torch.float64, device=device)
        self.scatter_DD = torch.zeros(
            num_dimensions, num_dimensions, dtype=torch.float64, device=device
        )

    def add(self, features_ND: Features) -> None:
        """Take in a batch (N, D) of any floating dtype and device.

        Raises:
            ValueError: it is empty, of another width, or holds NaN or infinity.
        """
        rows_ND = checked_rows(features_ND).to(self.mean_D)
        if rows_ND.shape[1] != len(self.mean_D):
            raise ValueError(
                f"features have {rows_ND.shape[1]} dimensions, those before had {len(self.mean_D)}"
            )
        mean_D = rows_ND.mean(dim=0)
        centered_ND = rows_ND - mean_D
        self._merge(len(rows_ND), mean_D, centered_ND.T @ centered_ND)

    def merge(self, others: Iterable[Moments]) -> None:
        """Take in what others have seen, of the same width."""
        for other in others:
            if other.num:
                self._merge(other.num, other.mean_D.to(self.mean_D), other.scatter_DD)

    def all_reduce(self) -> None:
        """Make each process hold what all have seen; one alone, without a group, has it already.

        Processes that have seen nothing take part, too.
        """
        if not dist.is_initialized():
            return
        num = torch.tensor(float(self.num), dtype=torch.float64, device=self.mean_D.device)
        dist.all_reduce(num)
        mean_D = self.num * self.mean_D
        dist.all_reduce(mean_D)
        mean_D /= num.clamp(min=1)
        self.scatter_DD += self.num * torch.outer(self.mean_D - mean_D, self.mean_D - mean_D)
        dist.all_reduce(self.scatter_DD)
        self.num, self.mean_D = int(num), mean_D

    def statistics(self) -> Statistics:
        """Mean and unbiased covariance.

        Raises:
            ValueError: there are fewer than two samples.
        """
        if self.num < 2:
            raise ValueError(f"a covariance needs two samples or more; there are {self.num}")
        covariance_DD = self.scatter_DD / (self.num - 1)
        return Statistics(self.mean_D.cpu().numpy().copy(), covariance_DD.cpu().numpy())

    def _merge(self, num: int, mean_D: Tensor, scatter_DD: Tensor) -> None:
        total = self.num + num
        step_D = mean_D - self.mean_D
        self.scatter_DD += scatter_DD.to(self.scatter_DD)
        self.scatter_DD += self.num * num / total * torch.outer(step_D, step_D)
        self.mean_D = self.mean_D + num / total * step_D
        self.num = total


def statistics_of(features_ND: Features) -> Statistics:
    """Statistics of features that are all at hand; raises as `Moments` does.

    Where there are fewer than dimensions, their own rows spare the covariance's eigenvectors.
    """
    rows_ND = checked_rows(features_ND)
    moments = Moments(rows_ND.shape[1], rows_ND.device)
    moments.add(rows_ND)
    statistics = moments.statistics()
    if moments.num >= rows_ND.shape[1]:
        return statistics
    centered_ND = (rows_ND.to(moments.mean_D) - moments.mean_D) / (moments.num - 1) ** 0.5
    return replace(statistics, rows_RD=centered_ND.cpu().numpy())


def note_of_few(num: int, num_dimensions: int) -> list[str]:
    """What a reader of a Frechet distance must know of so many samples; nothing if they suffice."""
    if num >= num_dimensions:
        return []
    return [
        f"{num:,} pictures for {num_dimensions:,} dimensions: the covariance is not of full rank, "
        "and Frechet distances are far too large; compare them only at equal numbers of pictures"
    ]
