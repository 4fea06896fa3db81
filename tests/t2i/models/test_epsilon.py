"""Proves the adapter from DiT's noise to velocities, on data whose velocity is known in closed form.

Each class is a Gaussian N(mean, STD^2), for which the best prediction of the noise at a step and the
velocity of the straight path are both formulas. The schedule is held against diffusers' DDPM.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from t2i.guidance.methods import make_guidance
from t2i.models.epsilon import EpsilonToVelocity, nearest_step
from t2i.models.perturbation import UNPERTURBED, Perturbation
from t2i.models.routing import draw_keep_ids
from t2i.models.sit import SiT
from t2i.models.sit_config import SiTConfig
from t2i.sampling.sampler import sample_latents

MEANS, STD = torch.tensor([-1.0, 0.5]), 0.3
CONFIG = SiTConfig(
    num_layers=3, width=32, num_heads=2, num_classes=2, routes=((1, 1),), prediction="epsilon"
)


def schedule() -> tuple[np.ndarray, np.ndarray]:
    """a and b of x = a data + b noise at steps 0 ... 999."""
    scheduler = DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    signal = scheduler.alphas_cumprod.double().numpy()
    return np.sqrt(signal), np.sqrt(1 - signal)


@dataclass(frozen=True)
class State:
    latents_BCHW: Tensor
    step_B: Tensor

    def select(self, ids: Tensor) -> State:
        return State(self.latents_BCHW[ids], self.step_B[ids])


class GaussianNoise(nn.Module):
    """E[noise | x, step, class] in closed form, with a variance beside it as in DiT."""

    config = CONFIG

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(MEANS)

    def embed(self, latents: Tensor, step: Tensor, guidance_scale_B: Tensor | None) -> State:
        assert guidance_scale_B is None  # the closed form has no scale input
        return State(latents, step)

    def before_route(self, hidden: State, labels: Tensor, perturbation: Perturbation) -> State:
        assert perturbation == UNPERTURBED
        return hidden

    def from_route(self, hidden: State, labels: Tensor, *_: object) -> Tensor:
        a, b = schedule()
        ratio = np.interp(hidden.step_B.numpy(), np.arange(1000), np.log(a / b))
        signal = torch.from_numpy(1 / (1 + np.exp(-2 * ratio))).float().view(-1, 1, 1, 1)
        mean = signal.sqrt() * self.means[labels].view(-1, 1, 1, 1)
        x, variance = hidden.latents_BCHW, signal * STD**2 + 1 - signal
        noise = (1 - signal).sqrt() * (x - mean) / variance
        return torch.cat([noise, torch.full_like(noise, 7.0)], dim=1)


def velocity(x: Tensor, t: Tensor, mean: Tensor) -> Tensor:
    """E[data - noise | x_t] of N(mean, STD^2) on the straight path."""
    t, mean = t.view(-1, 1, 1, 1), mean.view(-1, 1, 1, 1)
    return mean + (t * STD**2 - (1 - t)) / (t**2 * STD**2 + (1 - t) ** 2) * (x - t * mean)


def by_parts(model: EpsilonToVelocity, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return model.from_route(model.before_route(model.embed(x, t), labels), labels)


def test_every_step_has_the_time_of_equal_noise() -> None:
    a, b = schedule()
    steps, times = nearest_step(torch.from_numpy(a / (a + b)).float())
    torch.testing.assert_close(steps, torch.arange(1000).float(), atol=2e-2, rtol=0)
    torch.testing.assert_close(times, torch.from_numpy(a / (a + b)).float(), atol=1e-6, rtol=1e-5)
    ends = nearest_step(torch.tensor([0.0, 1.0]))
    assert ends[0].tolist() == [999, 0]
    assert ends[1].tolist() == pytest.approx([0.00631, 0.99010], abs=1e-4)


@torch.no_grad()
def test_the_velocity_of_a_gaussian_is_the_closed_form() -> None:
    x = torch.randn(7, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.01, 0.1, 0.25, 0.5, 0.8, 0.95, 0.98])
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    adapted = by_parts(EpsilonToVelocity(GaussianNoise()), x, t, labels)
    torch.testing.assert_close(adapted, velocity(x, t, MEANS[labels]), atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_beyond_the_ends_of_the_schedule_it_is_the_velocity_at_the_end() -> None:
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    model, labels = EpsilonToVelocity(GaussianNoise()), torch.tensor([0, 1])
    a, b = schedule()
    ends = torch.tensor([a[-1] / (a[-1] + b[-1]), a[0] / (a[0] + b[0])]).float()
    beyond = by_parts(model, x, torch.tensor([0.0, 1.0]), labels)
    torch.testing.assert_close(beyond, velocity(x, ends, MEANS), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_sampling_gives_the_gaussian_of_each_class(solver: str) -> None:
    labels = torch.tensor([0, 1]).repeat(16)
    latents = sample_latents(
        {"main": EpsilonToVelocity(GaussianNoise())},
        {"text": labels},
        make_guidance("none"),
        range(32),
        (4, 8, 8),
        num_steps=50,
        solver=solver,
    )
    for label in (0, 1):
        own = latents[labels == label]
        assert own.mean().item() == pytest.approx(MEANS[label].item(), abs=0.02)
        assert own.std().item() == pytest.approx(STD, abs=0.02)


@torch.no_grad()
def test_a_dit_is_asked_at_its_own_scale_and_step() -> None:
    model = SiT(CONFIG).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0, 0.3, generator=generator)
    x, labels = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([0, 2])
    keep_ids = draw_keep_ids(0, "route", 0, torch.arange(2), 16, 0.5)
    a, b = (torch.from_numpy(part[400:402]).float() for part in schedule())
    scale, t = (a + b).view(-1, 1, 1, 1), a / (a + b)
    steps = torch.tensor([400.0, 401.0])
    changed = Perturbation(skip_blocks=(1,))
    noise = model(scale * x, steps, labels, keep_ids, perturbation=changed)[:, :4]
    expected = (x - noise) / t.view(-1, 1, 1, 1)
    adapted = EpsilonToVelocity(model)
    hidden = adapted.before_route(adapted.embed(x, t), labels, changed)
    ours = adapted.from_route(hidden, labels, keep_ids, None, changed)
    torch.testing.assert_close(ours, expected, atol=2e-2, rtol=1e-2)
