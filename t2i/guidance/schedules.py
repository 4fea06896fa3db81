"""Numbers that change over the steps of sampling: sparsities and guidance scales. No torch here.

The step fraction u runs from 0 (first step, noise) to 1 (last step). One text form, used in
configs, on the command line and in the metadata of images:

    1.8                        constant
    linear:0.6:0               straight from 0.6 at u = 0 to 0 at u = 1
    cosine:0.6:0               0.3 (1 + cos pi u)   (Sparse Guidance, B.1)
    piecewise:0=1:0.3=2.5      1 for u < 0.3, then 2.5

Values may be placed with U=V; without it they are spread evenly over [0, 1]. They are finite; a
constant alone may be inf, which only APG's radius takes (`t2i.guidance.methods`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, PlainSerializer

Kind = Literal["constant", "linear", "cosine", "piecewise"]


@dataclass(frozen=True)
class Schedule:
    """A function of the step fraction; made by `as_schedule`.

    Attributes:
        kind: how to go from one point to the next.
        points: (step fraction, value), fractions ascending.
    """

    kind: Kind
    points: tuple[tuple[float, float], ...]

    def __call__(self, fraction: float) -> float:
        """The value at a step fraction in [0, 1]; beyond its first and last point it is constant."""
        first, last = self.points[0], self.points[-1]
        if fraction <= first[0]:
            return first[1]
        if fraction >= last[0]:
            return last[1]
        for (left, start), (right, end) in pairwise(self.points):
            if fraction < right:
                weight = (fraction - left) / (right - left)
                return start + self._ease(weight) * (end - start)
        raise AssertionError("fractions ascend")

    def _ease(self, weight: float) -> float:
        """How much of the way from one point to the next is done after ``weight`` of the time."""
        if self.kind == "cosine":
            return (1 - math.cos(math.pi * weight)) / 2
        return weight if self.kind == "linear" else 0.0

    @property
    def values(self) -> tuple[float, ...]:
        """The values at the points; the schedule never leaves their range."""
        return tuple(value for _, value in self.points)

    def __str__(self) -> str:
        """The text form."""
        if self.kind == "constant":
            return f"{self.points[0][1]:g}"
        return ":".join(
            [self.kind, *(f"{fraction:g}={value:g}" for fraction, value in self.points)]
        )


def constant(value: float) -> Schedule:
    """The same value at every step."""
    return Schedule("constant", ((0.0, float(value)),))


ZERO = constant(0.0)


def as_schedule(value: float | str | Schedule) -> Schedule:
    """Read a number or the text form.

    Raises:
        ValueError: not a schedule; the message shows the forms.
    """
    if isinstance(value, Schedule):
        return value
    kind, *parts = str(value).split(":")
    try:
        if not parts:
            number = float(kind)
            if math.isnan(number):
                raise ValueError
            return constant(number)
        if kind not in get_args(Kind) or kind == "constant" or len(parts) < 2:
            raise ValueError
        points = [_read_point(part, i / (len(parts) - 1)) for i, part in enumerate(parts)]
        if not all(math.isfinite(number) for point in points for number in point):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{value!r} is not a number or a schedule such as linear:0.6:0, cosine:0.6:0 or "
            "piecewise:0=1:0.3=2.5 (kind, then values over the steps)"
        ) from None
    fractions = [fraction for fraction, _ in points]
    if any(left >= right for left, right in pairwise(fractions)):
        raise ValueError(f"{value!r}: step fractions must ascend, got {fractions}")
    if fractions[0] < 0 or fractions[-1] > 1:
        raise ValueError(f"{value!r}: step fractions must lie in [0, 1], got {fractions}")
    return Schedule(kind, tuple(points))  # type: ignore[arg-type]


def _read_point(text: str, default_fraction: float) -> tuple[float, float]:
    fraction, separator, value = text.rpartition("=")
    return (float(fraction) if separator else default_fraction), float(value)


def _to_plain(schedule: Schedule) -> float | str:
    return schedule.points[0][1] if schedule.kind == "constant" else str(schedule)


# A field of a settings class that takes a number or the text form.
ScheduleField = Annotated[Schedule, BeforeValidator(as_schedule), PlainSerializer(_to_plain)]
