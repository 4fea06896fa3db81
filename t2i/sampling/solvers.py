"""Solvers of dx/dt = v(x, t) from t = 0 (noise) to t = 1 (data). They see a field, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from t2i.flow import shift_timestep

# x_t, t, number of the step -> velocity; the same shape and dtype as x_t
Field = Callable[[Tensor, float, int], Tensor]
# field, x_t, t, next t, number of the step -> x at the next t
Step = Callable[[Field, Tensor, float, float, int], Tensor]
# times -> the step of one trajectory, with what it remembers of earlier ones
Solver = Callable[[Sequence[float]], Step]
# number of the step, next t, x at the next t -> x to go on with
OnStep = Callable[[int, float, Tensor], Tensor]


def time_grid(num_steps: int, shift: float = 1.0) -> list[float]:
    """num_steps + 1 times from 0 to 1, even before the shift towards noise (`shift_timestep`)."""
    times = shift_timestep(torch.linspace(0, 1, num_steps + 1, dtype=torch.float64), shift)
    return times.tolist()


def step_fraction(step: int, num_steps: int) -> float:
    """u = 0 at the first step, 1 at the last: the argument of schedules."""
    return step / max(num_steps - 1, 1)


def euler(field: Field, x: Tensor, time: float, next_time: float, step: int) -> Tensor:
    """x + h v: one evaluation, first order."""
    return x + (next_time - time) * field(x, time, step)


def heun(field: Field, x: Tensor, time: float, next_time: float, step: int) -> Tensor:
    """x + h (v + v') / 2 with v' at Euler's result: two evaluations, second order.

    The step that ends at t = 1 is Euler's, as in EDM (arXiv 2206.00364), so the field is never
    asked for t = 1, where there is no noise left.
    """
    velocity = field(x, time, step)
    predicted = x + (next_time - time) * velocity
    if next_time >= 1:
        return predicted
    return x + (next_time - time) / 2 * (velocity + field(predicted, next_time, step))


class UniPC:
    """UniPC of order 2 (arXiv 2302.04867) by diffusers: one evaluation a step, remembers the last.

    It solves in log signal-to-noise ratio for the data estimate, with noise level s = 1 - t and
    velocity noise - data: diffusers' convention, converted here. When x is not the one that it
    returned, a callback has replaced it, and the memory of the path that led elsewhere is dropped: the next
    step is of first order.
    """

    def __init__(self, times: Sequence[float]) -> None:
        from diffusers import UniPCMultistepScheduler

        self.scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2
        )
        self.scheduler.set_timesteps(sigmas=1 - np.array(times[:-1]))
        self.scheduler.set_begin_index(0)
        self.returned: Tensor | None = None

    def __call__(self, field: Field, x: Tensor, time: float, next_time: float, step: int) -> Tensor:
        """x at the next time; to be called for each step in order."""
        if self.returned is not None and not torch.equal(x, self.returned):
            self.scheduler.last_sample = None  # else the corrector starts from there again
            self.scheduler.lower_order_nums = 0  # a step of first order, as at the beginning
        velocity = field(x, time, step)
        next_x = self.scheduler.step(-velocity, self.scheduler.timesteps[step], x).prev_sample
        self.returned = next_x.clone()  # a callback may change next_x in place
        return next_x


SOLVERS: dict[str, Solver] = {"euler": lambda _: euler, "heun": lambda _: heun, "unipc": UniPC}


def integrate(
    field: Field, noise: Tensor, times: Sequence[float], solver: str, on_step: OnStep | None = None
) -> Tensor:
    """Follow the field from noise at times[0] through all times.

    Args:
        field: the velocity.
        noise: x at times[0].
        times: ascending, e.g. from `time_grid`.
        solver: a key of `SOLVERS`.
        on_step: called after each step; what it returns replaces x.

    Raises:
        ValueError: unknown solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; valid: {' '.join(SOLVERS)}")
    x, take_step = noise, SOLVERS[solver](times)
    for step, (time, next_time) in enumerate(pairwise(times)):
        x = take_step(field, x, time, next_time, step)
        if on_step is not None:
            x = on_step(step, next_time, x)
    return x
