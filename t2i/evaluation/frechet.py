"""Frechet distance of two Gaussians: FID, sFID and FDD are this number of three networks' features.

    ||m1 - m2||^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^1/2)

(Dowson and Landau, 1982; Heusel et al., "GANs trained by a two time-scale update rule", 2017.)

With factors S = A A^T the last trace is the sum of the singular values of A1^T A2, since their
squares are the eigenvalues of S1 S2. This is preferred to a square root of the product, which
ADM's evaluator takes: that is not symmetric, so with fewer samples than dimensions the root may
not exist or turn complex; and to its eigenvalues, whose rounding errors, about 1e-16, become
1e-8 each under the root. Singular values keep theirs at 1e-16. Eigenvalues of S below the rounding
error of its largest are taken as the zeros that they are for too few samples.

Shape suffixes: D dimensions, R rank.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh, svdvals

from t2i.evaluation.moments import Statistics

NEGATIVE_AT_MOST = 1e-4  # of the largest eigenvalue: statistics that were stored in half precision


def frechet_distance(one: Statistics, other: Statistics) -> float:
    """The distance, never below 0; symmetric in its arguments.

    Raises:
        ValueError: statistics of different widths, with NaN or infinity, or whose covariance has
            negative eigenvalues.
    """
    if one.mean_D.shape != other.mean_D.shape:
        raise ValueError(
            f"statistics have {one.mean_D.size} and {other.mean_D.size} dimensions; "
            "both must come from the same network"
        )
    step_D = one.mean_D - other.mean_D
    trace_of_root = svdvals(_factor(one).T @ _factor(other)).sum()
    traces = np.trace(one.covariance_DD) + np.trace(other.covariance_DD)
    return max(float(step_D @ step_D + traces - 2 * trace_of_root), 0.0)


def _factor(statistics: Statistics) -> np.ndarray:
    """A (D, R) with A A^T = the covariance."""
    if not np.isfinite(statistics.mean_D).all() or not np.isfinite(statistics.covariance_DD).all():
        raise ValueError("the statistics hold NaN or infinity")
    values_D, vectors_DD = eigh(statistics.covariance_DD, driver="evd")
    if values_D[0] < -NEGATIVE_AT_MOST * abs(values_D[-1]):
        raise ValueError(
            f"this is no covariance: its eigenvalues go from {values_D[0]:.3g} to {values_D[-1]:.3g}"
        )
    smallest = len(values_D) * np.finfo(np.float64).eps * values_D[-1]
    # One column at least, so that sets without any spread have a distance.
    first = min(np.searchsorted(values_D, smallest, side="right"), len(values_D) - 1)
    return vectors_DD[:, first:] * np.sqrt(values_D[first:].clip(min=0))
