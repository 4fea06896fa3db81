"""Averages of the weights by power functions, and any of them out of stored ones, in numbers alone.

After t updates the average of relative width sigma weighs the weights of update tau (0 < tau <= t) by
p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1), whose standard deviation is sigma t. Updated by
`power_decay` an average has exactly these weights: its share of update i is the integral of p from
i - 1 to i. Profiles of other widths are near to sums of those that were stored, by least squares.

Karras et al. 2024, Analyzing and Improving the Training Dynamics of Diffusion Models, section 3 and
appendix C.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Square of the rounding of float16, in which snapshots are stored: what rounding does to the sum
# weighs as much as an error of the profile. It settles profiles that are nearly the same.
RIDGE = 2.0**-24

Numbers = np.ndarray | float


def gamma_of(width: float) -> float:
    """The power gamma > 0 of a relative width sigma in (0, 1 / sqrt(12)).

    The positive root of gamma^3 + 7 gamma^2 + (16 - sigma^-2) gamma + (12 - sigma^-2), which is
    sigma = (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^-(1/2) solved for gamma.
    """
    assert 0 < width < 12**-0.5, width
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(roots.real.max())


def power_decay(updates: int, gamma: float) -> float:
    """Decay of the next update after ``updates``: (1 - 1/t)^(gamma + 1), t = updates + 1.

    That of the first one is 0: it copies the weights.
    """
    return float((updates / (updates + 1)) ** (gamma + 1))


def inner_product(time: Numbers, gamma: Numbers, time2: Numbers, gamma2: Numbers) -> np.ndarray:
    """Integral of the product of two profiles, each by its updates t and its power; broadcasts."""
    until = np.minimum(time, time2)
    powers = (until / time) ** gamma * (until / time2) ** gamma2
    factor = (gamma + 1) * (gamma2 + 1) / (gamma + gamma2 + 1)
    return np.asarray(factor * powers / np.maximum(time, time2))


def coefficients(
    stored: Sequence[tuple[int, float]], updates: int, width: float
) -> tuple[list[float], float]:
    """Factors of stored averages whose sum is nearest to the average of another width.

    They sum to one, as an average must: the paper's least squares with this one constraint.

    Args:
        stored: updates (at least 1) and relative width of each; no pair twice.
        updates: of the wanted average.
        width: of the wanted average.

    Returns:
        The factors, and how far the profiles are apart: norm of the difference / norm of the wanted.
    """
    times = np.array([float(time) for time, _ in stored])
    gammas = np.array([gamma_of(stored_width) for _, stored_width in stored])
    wanted = float(updates), gamma_of(width)
    square = float(inner_product(*wanted, *wanted))
    products = inner_product(times[:, None], gammas[:, None], times, gammas)
    targets = inner_product(times, gammas, *wanted)
    # normal equations, with a Lagrange multiplier as the last unknown; in units of the wanted square
    count = len(stored)
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = products / square + RIDGE * np.eye(count)
    system[count, count] = 0
    factors = np.linalg.solve(system, np.append(targets / square, 1.0))[:count]
    squared_error = 1 + (factors @ products @ factors - 2 * factors @ targets) / square
    return factors.tolist(), float(np.sqrt(max(squared_error, 0.0)))
