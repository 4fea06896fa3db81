"""Rules that are no fixed sum of predictions: adaptive projected guidance, CFG-Zero*.

Works on tensors (B, ...) through their own methods, so torch is not imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from t2i.guidance.schedules import Schedule

if TYPE_CHECKING:
    from torch import Tensor


class AdaptiveProjection:
    """APG (arXiv 2410.02416, algorithm 1) for one trajectory, on data estimates.

    Args:
        omega: guidance scale, 1 means none.
        eta: weight of the part of the difference that is parallel to the conditional estimate.
        radius: the difference is scaled down to at most this norm per sample; inf leaves it.
        momentum: weight of the differences of earlier steps (negative in the paper).

    The running average advances once per step, at the step's first evaluation: the paper's counts
    steps, so its memory must not be half as long with a solver that evaluates twice (Heun). A
    further evaluation of a step, known by its step fraction, takes the average of the steps before
    and its own difference in place of the first one's, and leaves no trace.
    """

    def __init__(
        self, omega: Schedule, eta: Schedule, radius: Schedule, momentum: Schedule
    ) -> None:
        self.omega = omega
        self.eta = eta
        self.radius = radius
        self.momentum = momentum
        self.fraction: float | None = None  # of the step at hand
        self.before: Tensor | float = 0.0  # the average up to the step before it
        self.average: Tensor | float = 0.0  # with its first evaluation

    def __call__(
        self, predictions: Sequence[Tensor], x_t: Tensor, timestep: float, fraction: float
    ) -> Tensor:
        """The guided velocity from the conditional and the unconditional one; t < 1."""
        conditional, unconditional = predictions
        # x^ = x_t + (1 - t) v
        to_data = 1 - timestep
        estimate = x_t + to_data * conditional
        latest, momentum = to_data * (conditional - unconditional), self.momentum(fraction)
        is_first = fraction != self.fraction
        if is_first:
            self.fraction, self.before = fraction, self.average
        average = latest + momentum * self.before
        if is_first:
            self.average = average
        difference = average * (self.radius(fraction) / norm(average)).clamp(max=1.0)
        parallel = project(difference, estimate)
        update = difference - parallel + self.eta(fraction) * parallel
        return conditional + (self.omega(fraction) - 1) / to_data * update


class RescaledNull:
    """CFG-Zero* (arXiv 2503.18886, algorithm 1) for one trajectory.

    The unconditional velocity is scaled, per sample, to the length at which it is nearest to the
    conditional one; and the first steps do not move, since early velocities are the least certain.

    Args:
        omega: guidance scale; at 1 only the steps that do not move are left.
        zero_steps: number of steps that do not move. A solver's further evaluations of a step, which
            have its step fraction, are of the same step.
    """

    def __init__(self, omega: Schedule, zero_steps: Schedule) -> None:
        self.omega = omega
        self.zero_steps = zero_steps
        self.fractions: set[float] = set()  # of the steps up to the one at hand

    def __call__(
        self, predictions: Sequence[Tensor], x_t: Tensor, timestep: float, fraction: float
    ) -> Tensor:
        """The guided velocity from the conditional and the unconditional one."""
        conditional, unconditional = predictions
        self.fractions.add(fraction)
        if len(self.fractions) <= self.zero_steps(fraction):
            return conditional * 0.0
        nearest = project(conditional, unconditional)
        return nearest + self.omega(fraction) * (conditional - nearest)


def norm(x: Tensor) -> Tensor:
    """Euclidean norm of each sample, (B, 1, ..., 1), never zero."""
    return x.square().flatten(1).sum(1).sqrt().clamp(min=1e-12).reshape(-1, *[1] * (x.ndim - 1))


def project(x: Tensor, onto: Tensor) -> Tensor:
    """The part of each sample of ``x`` that is parallel to ``onto``."""
    direction = onto / norm(onto)
    return (x * direction).flatten(1).sum(1).reshape(-1, *[1] * (x.ndim - 1)) * direction
