"""Solvers on fields with a known solution: values, orders of convergence, the last step."""

import math

import pytest
import torch
from torch import Tensor

from t2i.sampling.solvers import integrate, step_fraction, time_grid


def growth(x: Tensor, time: float, step: int) -> Tensor:
    """dx/dt = cos(3 t) x, solved by x(1) = x(0) exp(sin(3) / 3)."""
    return math.cos(3 * time) * x


def error(solver: str, num_steps: int) -> float:
    x = integrate(growth, torch.ones(1, dtype=torch.float64), time_grid(num_steps), solver)
    return abs(x.item() - math.exp(math.sin(3) / 3))


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_straight_path_is_followed_exactly_in_one_step(solver: str) -> None:
    noise, data = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    for num_steps in (1, 7):
        x = integrate(lambda x, t, i: data - noise, noise, time_grid(num_steps), solver)
        torch.testing.assert_close(x, data)


def test_euler_is_the_product_of_its_closed_form() -> None:
    expected = math.prod(1 + math.cos(3 * i / 10) / 10 for i in range(10))
    x = integrate(growth, torch.ones(1, dtype=torch.float64), time_grid(10), "euler")
    assert x.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_the_error_falls_with_the_order_of_the_solver(solver: str, order: int) -> None:
    assert math.log2(error(solver, 64) / error(solver, 128)) == pytest.approx(order, abs=0.15)


def gaussian(x: Tensor, time: float, step: int) -> Tensor:
    """The velocity when data are N(2, 0.5^2): x(1) = 2 + 0.5 x(0), by the closed form of x_t."""
    variance = (0.5 * time) ** 2 + (1 - time) ** 2
    growth_rate = (0.25 * time - (1 - time)) / variance
    return 2 + growth_rate * (x - 2 * time)


def gaussian_error(solver: str, num_steps: int) -> float:
    noise = torch.tensor([-1.5, 0.5, 1.0], dtype=torch.float64).reshape(3, 1, 1)
    x = integrate(gaussian, noise, time_grid(num_steps), solver)
    return (x - (2 + 0.5 * noise)).abs().max().item()


def test_unipc_is_of_second_order_at_one_evaluation_a_step() -> None:
    assert math.log2(gaussian_error("unipc", 40) / gaussian_error("unipc", 80)) > 1.7
    assert gaussian_error("unipc", 20) < gaussian_error("euler", 20) / 4


def test_unipc_follows_a_straight_path() -> None:
    noise, data = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    x = integrate(lambda x, t, i: data - noise, noise, time_grid(7), "unipc")
    torch.testing.assert_close(x, data, atol=1e-4, rtol=1e-4)


def test_two_trajectories_of_unipc_do_not_share_a_memory() -> None:
    assert gaussian_error("unipc", 10) == gaussian_error("unipc", 10)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("solver", ["euler", "heun", "unipc"])
def test_a_replaced_x_is_where_the_solver_goes_on(solver: str, in_place: bool) -> None:
    """As if the trajectory had begun there: in a field of zeros x stays, in another it moves on."""
    times, noise = time_grid(10), torch.full((1, 1, 1), 0.3, dtype=torch.float64)

    def on_step(step: int, time: float, x: Tensor) -> Tensor:
        if step != 3:
            return x
        return x.fill_(5) if in_place else torch.full_like(x, 5)

    still = integrate(lambda x, t, i: 0 * x, noise, times, solver, on_step)
    torch.testing.assert_close(still, torch.full_like(noise, 5), rtol=1e-6, atol=0)
    moved = integrate(gaussian, noise, times, solver, on_step)
    fresh = integrate(gaussian, torch.full_like(noise, 5), times[4:], solver)
    torch.testing.assert_close(moved, fresh, rtol=1e-5, atol=0)


def test_a_callback_that_changes_nothing_leaves_unipc_its_memory() -> None:
    noise, times = torch.full((1, 1, 1), 0.3, dtype=torch.float64), time_grid(10)
    copied = integrate(gaussian, noise, times, "unipc", lambda step, time, x: x.clone())
    assert torch.equal(copied, integrate(gaussian, noise, times, "unipc"))


@pytest.mark.parametrize(("solver", "count"), [("euler", 5), ("heun", 9), ("unipc", 5)])
def test_no_solver_asks_for_the_field_at_one(solver: str, count: int) -> None:
    times: list[float] = []

    def field(x: Tensor, time: float, step: int) -> Tensor:
        times.append(time)
        return x

    integrate(field, torch.ones(1, 1, 1), time_grid(5), solver)
    assert len(times) == count
    assert max(times) < 1


@pytest.mark.parametrize(("solver", "per_step"), [("euler", 1), ("heun", 2), ("unipc", 1)])
def test_all_evaluations_of_a_step_are_told_its_number(solver: str, per_step: int) -> None:
    """All draws of a step follow from it, so Heun's second evaluation sees those of the first."""
    asked: list[int] = []

    def field(x: Tensor, time: float, step: int) -> Tensor:
        asked.append(step)
        return x

    integrate(field, torch.ones(1, 1, 1), time_grid(4), solver)
    assert asked == [*(step for step in range(3) for _ in range(per_step)), 3]


def test_a_shift_of_two_spends_more_steps_on_noise() -> None:
    """t / (2 - t) at t = 0, 1/4, 1/2, 3/4, 1."""
    assert time_grid(4, shift=2) == pytest.approx([0, 1 / 7, 1 / 3, 3 / 5, 1], rel=1e-12)


def test_the_time_grid_ends_at_zero_and_one_and_shifts_towards_noise() -> None:
    assert time_grid(4) == [0, 0.25, 0.5, 0.75, 1]
    shifted = time_grid(4, shift=3)
    assert (shifted[0], shifted[-1]) == (0, 1)
    assert all(late < even for late, even in zip(shifted[1:-1], time_grid(4)[1:-1], strict=True))


def test_step_fractions_run_from_zero_to_one() -> None:
    assert [step_fraction(i, 3) for i in range(3)] == [0, 0.5, 1]
    assert step_fraction(0, 1) == 0


def test_an_unknown_solver_is_answered_with_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown solver 'rk4'; valid: euler heun unipc"):
        integrate(growth, torch.ones(1), time_grid(2), "rk4")
