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
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from t2i.console import get_logger
from t2i.evaluation.feature_rows import Features, checked_rows

logger = get_logger("evaluate")


@dataclass(frozen=True)
class Statistics:
    """A Gaussian's parameters, all that a Frechet distance sees of a set.

    Attributes:
        mean_D: (D,) float64.
        covariance_DD: (D, D) float64, symmetric.
    """

    mean_D: np.ndarray
    covariance_DD: np.ndarray


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
        """Mean and unbiased covariance; warns if there are fewer samples than dimensions.

        Raises:
            ValueError: there are fewer than two samples.
        """
        if self.num < 2:
            raise ValueError(f"a covariance needs two samples or more; there are {self.num}")
        if self.num < len(self.mean_D):
            logger.warning(
                "%d samples for %d dimensions: the covariance is not of full rank, and Frechet "
                "distances are far too large; compare them only at equal numbers of samples",
                self.num,
                len(self.mean_D),
            )
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
    """Statistics of features that are all at hand; raises as `Moments` does."""
    rows_ND = checked_rows(features_ND)
    moments = Moments(rows_ND.shape[1], rows_ND.device)
    moments.add(rows_ND)
    return moments.statistics()
