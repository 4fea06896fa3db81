"""Frechet distance of two Gaussians: FID, sFID and FDD are this number of three networks' features.

    ||m1 - m2||^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^1/2)

(Dowson and Landau, 1982; Heusel et al., "GANs trained by a two time-scale update rule", 2017.)

With factors S = A A^T the last trace is the sum of the singular values of A1^T A2, since their
squares are the eigenvalues of S1 S2. This is preferred to a square root of the product, which
ADM's evaluator takes: that is not symmetric, so with fewer samples than dimensions the root may
not exist or turn complex; and to its eigenvalues, whose rounding errors, about 1e-16, become
1e-8 each under the root. Singular values keep theirs at 1e-16.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import svdvals

from t2i.evaluation.moments import Statistics


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
    trace_of_root = svdvals(one.factor_DR.T @ other.factor_DR).sum()
    traces = np.trace(one.covariance_DD) + np.trace(other.covariance_DD)
    return max(float(step_D @ step_D + traces - 2 * trace_of_root), 0.0)
