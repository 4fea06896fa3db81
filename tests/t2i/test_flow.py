"""Proves the path, its estimates, the time draws and the shift against closed forms."""

import math

import pytest
import torch

from t2i import flow, rng
from t2i.flow import TimestepConfig


@pytest.fixture
def pair():
    noise = rng.normal(0, "noise", 0, torch.arange(3), (4, 2, 2))
    data = rng.normal(0, "data", 0, torch.arange(3), (4, 2, 2))
    return data, noise, torch.tensor([0.0, 0.3, 1.0])


def test_time_zero_is_noise_and_time_one_is_data(pair):
    data, noise, timestep = pair
    x_t = flow.interpolate(data, noise, timestep)
    assert torch.equal(x_t[0], noise[0])
    assert torch.equal(x_t[2], data[2])


def test_golden_values_on_numbers():
    one, three, quarter = torch.tensor([[1.0]]), torch.tensor([[3.0]]), torch.tensor([0.25])
    assert flow.interpolate(three, one, quarter).item() == 1.5
    assert flow.velocity_target(three, one).item() == 2.0


def test_estimates_with_the_true_velocity_give_back_data_and_noise(pair):
    data, noise, timestep = pair
    x_t, velocity = flow.interpolate(data, noise, timestep), flow.velocity_target(data, noise)
    torch.testing.assert_close(flow.data_estimate(x_t, velocity, timestep), data)
    torch.testing.assert_close(flow.noise_estimate(x_t, velocity, timestep), noise)
    back = flow.velocity_from_data(x_t[:2], data[:2], timestep[:2])
    torch.testing.assert_close(back, velocity[:2])


def test_target_is_the_time_derivative_of_the_path(pair):
    data, noise, _ = pair
    path = lambda t: flow.interpolate(data.double(), noise.double(), t)  # noqa: E731
    _, derivative = torch.func.jvp(
        path, (torch.full((3,), 0.4).double(),), (torch.ones(3).double(),)
    )
    torch.testing.assert_close(derivative.float(), flow.velocity_target(data, noise))


def test_uniform_times_are_the_draws():
    draws = torch.rand(10)
    assert torch.equal(flow.draw_timesteps(TimestepConfig(distribution="uniform"), draws), draws)


def test_logit_normal_times_have_the_quantiles_of_their_distribution():
    config = TimestepConfig(mean=0.5, std=2.0)
    normal = torch.distributions.Normal(0.0, 1.0)
    z = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    timesteps = flow.draw_timesteps(config, normal.cdf(z))
    torch.testing.assert_close(timesteps, torch.sigmoid(0.5 + 2 * z), atol=1e-5, rtol=0)


def test_times_stay_within_zero_and_one_at_the_ends_of_the_draws():
    ends = torch.tensor([0.0, 2**-24, 1 - 2**-24])
    timesteps = flow.draw_timesteps(TimestepConfig(shift=3.0), ends)
    assert ((timesteps >= 0) & (timesteps <= 1)).all()


def test_shift_keeps_the_ends_moves_to_noise_and_matches_the_formula_in_noise_level():
    timestep = torch.linspace(0, 1, 11)
    shifted = flow.shift_timestep(timestep, 3.0)
    level = 1 - timestep
    torch.testing.assert_close(1 - shifted, 3 * level / (1 + 2 * level))
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert (shifted[1:-1] < timestep[1:-1]).all()
    torch.testing.assert_close(flow.shift_timestep(shifted, 1 / 3), timestep)


@pytest.mark.parametrize(("tokens", "shift"), [(1024, 2.0), (256, 1.0), (64, 0.5), (512, 2**0.5)])
def test_the_shift_is_the_root_of_the_number_of_tokens_over_the_usual_one(tokens, shift):
    assert math.isclose(flow.resolution_shift(tokens, 256), shift)


def test_a_mean_that_uniform_times_would_ignore_is_refused():
    assert TimestepConfig(distribution="uniform", shift=2.0).mean == 0
    with pytest.raises(ValueError, match=r"mean -0\.5 and std 1 are of logit_normal"):
        TimestepConfig(distribution="uniform", mean=-0.5)
