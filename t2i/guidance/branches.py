"""Guidance as data: which predictions a method asks for, and how it weighs them. No torch here.

    velocity = sum_i coefficient_i(u) * D(condition_i; gamma_i(u)),   coefficients sum to 1

u is the step fraction, see `t2i.guidance.schedules`. The methods themselves are in
`t2i.guidance.methods`; `t2i.sampling.sampler` runs what `plan` leaves to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from t2i.guidance.schedules import ZERO, Schedule
from t2i.guidance.weaknesses import NO_WEAKNESS, BlockChoice, Kind, Weakness

if TYPE_CHECKING:
    from torch import Tensor

# the prompt; the empty prompt; a prompt drawn independently of the image, usually at each step
Condition = Literal["text", "null", "random"]
# the sampled network; a second, weaker one (AutoGuidance)
Network = Literal["main", "aux"]
# predictions in the order of the branches, x_t, t, step fraction -> the guided velocity; evaluations
# of one step have the same step fraction, those of different steps different ones
Combine = Callable[[Sequence["Tensor"], "Tensor", float, float], "Tensor"]
Coefficients = Callable[[float], tuple[float, ...]]
# a number that may change over the steps, or which blocks
Setting = Schedule | BlockChoice


@dataclass(frozen=True)
class Branch:
    """One prediction that a method asks for at each step.

    Attributes:
        condition: what the network is told.
        gamma: fraction of tokens that skip the routed layers, in [0, 1).
        draw: name of the routing draw. Branches of the same name and gamma drop the same tokens.
        network: which network predicts.
        weakness: what else the network does worse.
    """

    condition: Condition = "text"
    gamma: Schedule = ZERO
    draw: str = "strong"
    network: Network = "main"
    weakness: Weakness = NO_WEAKNESS


@dataclass(frozen=True)
class Guidance:
    """A guidance method with its settings; made by `t2i.guidance.methods.make_guidance`.

    Attributes:
        branches: the first is the strong prediction: the result at omega = 1 and outside `interval`.
        coefficients: step fraction -> one weight per branch.
        name, settings: for people and for the metadata of images.
        interval: guide only while interval[0] <= t <= interval[1].
        new_combine: makes the rule of a method that is not linear, fresh for each trajectory;
            then `coefficients` only says which branches count.
    """

    branches: tuple[Branch, ...]
    coefficients: Coefficients
    name: str = "custom"
    settings: Mapping[str, Setting] = field(default_factory=dict)
    interval: tuple[float, float] = (0.0, 1.0)
    new_combine: Callable[[], Combine] | None = None

    def __str__(self) -> str:
        """For example "sg omega=1.8 gamma_strong=0.1 gamma_weak=0.8"."""
        parts = [self.name, *(f"{name}={value}" for name, value in self.settings.items())]
        if self.interval != (0.0, 1.0):
            parts.append(f"interval={self.interval[0]:g},{self.interval[1]:g}")
        return " ".join(parts)

    def uses(self, network: Network) -> bool:
        """Whether a branch asks for the network."""
        return any(branch.network == network for branch in self.branches)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions that the branches ask for, each once."""
        return tuple(dict.fromkeys(branch.condition for branch in self.branches))

    def weakens(self, kind: Kind) -> bool:
        """Whether a branch is weakened in this way."""
        return any(branch.weakness.kind == kind for branch in self.branches)

    def is_active(self, timestep: float) -> bool:
        """Whether t lies in the interval."""
        return self.interval[0] <= timestep <= self.interval[1]


@dataclass(frozen=True)
class Evaluation:
    """A branch at one step, with its gamma as a number: what is really computed."""

    condition: Condition
    gamma: float
    draw: str
    network: Network
    weakness: Weakness = NO_WEAKNESS


def evaluations(guidance: Guidance, fraction: float) -> tuple[Evaluation, ...]:
    """What each branch asks for at a step fraction, in order, duplicates included.

    Raises:
        ValueError: a gamma outside [0, 1).
    """
    result = []
    for branch in guidance.branches:
        gamma = branch.gamma(fraction)
        if not 0 <= gamma < 1:
            raise ValueError(
                f"{guidance}: gamma is {gamma:g} at step fraction {fraction:g}, must be in [0, 1)"
            )
        draw = branch.draw if gamma else ""  # a dense branch draws nothing
        weakness = branch.weakness.at(fraction)
        result.append(Evaluation(branch.condition, gamma, draw, branch.network, weakness))
    return tuple(result)


def plan(guidance: Guidance, timestep: float, fraction: float) -> dict[Evaluation, float]:
    """The weight of each prediction that has to be computed: equal ones merged, zeros left out.

    Outside the interval it is the first branch alone.

    Args:
        guidance: a linear method.
        timestep: t in [0, 1].
        fraction: step fraction in [0, 1].
    """
    wanted = evaluations(guidance, fraction)
    if not guidance.is_active(timestep):
        return {wanted[0]: 1.0}
    weights: dict[Evaluation, float] = {}
    for evaluation, weight in zip(wanted, guidance.coefficients(fraction), strict=True):
        weights[evaluation] = weights.get(evaluation, 0.0) + weight
    return {evaluation: weight for evaluation, weight in weights.items() if abs(weight) > 1e-12}


def batches(
    wanted: Sequence[Evaluation], num_kept: Callable[[float], int]
) -> list[tuple[Evaluation, ...]]:
    """Group predictions that one forward can compute: same network, weakness, number of kept tokens.

    Args:
        wanted: distinct evaluations.
        num_kept: gamma -> tokens that run the routed layers.
    """

    def shape(evaluation: Evaluation) -> tuple[str, str, int]:
        return evaluation.network, repr(evaluation.weakness), num_kept(evaluation.gamma)

    return [tuple(group) for _, group in groupby(sorted(wanted, key=shape), key=shape)]
