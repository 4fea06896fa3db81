"""Proves objectives and guidance where the truth is known: a Gaussian mixture in the plane.

Two classes of two Gaussians each lie on the corners of a square, one class per diagonal. Density,
score and velocity have closed forms. A small class-conditional network is trained with the real
objectives on latents of one pixel and two channels, whose moments are the mixture's; then it is
sampled with the real solvers. Seeds are fixed, and the bounds hold for other seeds as well: the
claims do not hang on a lucky draw.

Shape suffixes: B samples, C = 2 coordinates, M Gaussians, W hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from t2i import rng
from t2i.batch import TrainingBatch
from t2i.flow import TimestepConfig
from t2i.models.layers import TimeEmbedding, add_scale
from t2i.models.routing import draw_keep_ids
from t2i.sampling.solvers import integrate, time_grid
from t2i.training.averages.ema import EMA, averaged_network, decay_at
from t2i.training.conditions import ContrastedConditions
from t2i.training.objectives.flow_matching import FlowMatching
from t2i.training.objectives.model_guidance import ModelGuidance
from t2i.training.objectives.model_guidance_config import ModelGuidanceConfig, ScaleInterval

MEANS = torch.tensor([[[-0.8, -0.8], [0.8, 0.8]], [[-0.8, 0.8], [0.8, -0.8]]])  # class, which, C
STD = 0.4
NULL = 2
WIDTH, NUM_HIDDEN_TOKENS = 64, 16
BASE = FlowMatching(0, 0.0, TimestepConfig(distribution="uniform"), patch_size=1)
NUM_STEPS, BATCH_SIZE = 1000, 512
NUM_SAMPLES = 1000
SAMPLE_IDS = torch.arange(NUM_SAMPLES)
NOISE = rng.normal(1, "noise", 0, SAMPLE_IDS, (2,))

# points (B, C), their time, number of the step -> velocity (B, C): what solvers integrate
Field = Callable[[Tensor, float, int], Tensor]


# The truth. t x + (1 - t) z of one Gaussian has mean t m and variance (t s)^2 + (1 - t)^2.


def means_of(label: int) -> Tensor:
    """(M, C): the Gaussians of a class, or all of them."""
    return MEANS.flatten(0, 1) if label == NULL else MEANS[label]


def log_density(x_BC: Tensor, time: float, label: int) -> Tensor:
    """log p_t(x | label), (B,)."""
    means_MC, variance = means_of(label), (time * STD) ** 2 + (1 - time) ** 2
    squares_BM = (x_BC[:, None] - time * means_MC).square().sum(dim=2)
    normaliser = math.log(len(means_MC) * 2 * math.pi * variance)
    return (-squares_BM / (2 * variance)).logsumexp(dim=1) - normaliser


def true_velocity(x_BC: Tensor, time: float, label: int) -> Tensor:
    """E[x - z | x_t, label]: for one Gaussian m + (t s^2 - (1 - t)) / variance (x_t - t m)."""
    means_MC, variance = means_of(label), (time * STD) ** 2 + (1 - time) ** 2
    offset_BMC = x_BC[:, None] - time * means_MC
    share_BM = (-offset_BMC.square().sum(dim=2) / (2 * variance)).softmax(dim=1)
    velocity_BMC = means_MC + (time * STD**2 - (1 - time)) / variance * offset_BMC
    return (share_BM[..., None] * velocity_BMC).sum(dim=1)


def truth(label: int) -> Field:
    return lambda x_BC, time, step: true_velocity(x_BC, time, label)


def guide(strong: Field, weak: Field, omega: float) -> Field:
    """omega strong + (1 - omega) weak."""
    return lambda x, time, step: omega * strong(x, time, step) + (1 - omega) * weak(x, time, step)


# The network and its training.


class MixtureNet(nn.Module):
    """An MLP whose second layer is routed: hidden tokens of four units each can skip it.

    Its scale input, if any, is the models' own.
    """

    def __init__(self, scale_input: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(2 + 4 + 3, WIDTH)
        self.routed = nn.Linear(WIDTH, WIDTH)
        self.third = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, 2)
        self.scale = TimeEmbedding(WIDTH, zero=True) if scale_input else None

    def forward(
        self,
        x_BC11: Tensor,
        timestep_B: Tensor,
        labels_B: Tensor,
        keep_ids_BK: Tensor | None,
        guidance_scale_B: Tensor | None = None,
    ) -> Tensor:
        angle_B = math.pi * timestep_B
        numbers = (timestep_B, timestep_B**2, angle_B.cos(), angle_B.sin())
        inputs = (x_BC11.flatten(1), F.one_hot(labels_B, 3), torch.stack(numbers, dim=1))
        h_BW = self.first(torch.cat(inputs, dim=1))
        h_BW = F.silu(add_scale(h_BW, self.scale, guidance_scale_B))
        kept_BW = torch.ones_like(h_BW)
        if keep_ids_BK is not None:
            none_BT = torch.zeros(len(h_BW), NUM_HIDDEN_TOKENS)
            kept_BT = none_BT.scatter(1, keep_ids_BK, 1.0)
            kept_BW = kept_BT.repeat_interleave(WIDTH // NUM_HIDDEN_TOKENS, dim=1)
        h_BW = h_BW + kept_BW * F.silu(self.routed(kept_BW * h_BW))
        return self.out(F.silu(self.third(h_BW)))[:, :, None, None]


@dataclass(frozen=True)
class Trained:
    """A trained network and the averages of its weights, which are what is sampled."""

    net: MixtureNet
    averaged: Callable[..., Tensor]

    def field(self, label: int, scale: float | None = None, gamma: float = 0.0) -> Field:
        """Its prediction; with gamma > 0 hidden tokens skip the routed layer, afresh each step."""

        def velocity(x_BC: Tensor, time: float, step: int) -> Tensor:
            keep_ids = None
            if gamma > 0:
                keep_ids = draw_keep_ids(2, "weak", step, SAMPLE_IDS, NUM_HIDDEN_TOKENS, gamma)
            times, labels = torch.full((len(x_BC),), time), torch.full((len(x_BC),), label)
            fed = {} if scale is None else {"guidance_scale_B": torch.full_like(times, scale)}
            return self.averaged(x_BC[..., None, None], times, labels, keep_ids, **fed)[..., 0, 0]

        return velocity


def training_batches(start: int, stop: int) -> Iterator[tuple[TrainingBatch, Tensor, Tensor]]:
    """Micro-batches of the mixture, their labels (a fifth of them dropped), which were dropped."""
    for step in range(start, stop):
        ids = torch.arange(BATCH_SIZE) + step * BATCH_SIZE
        drawn = rng.words(0, "gaussian", step, ids, 1)[:, 0] % 4
        moments = torch.cat([means_of(NULL)[drawn], torch.full((BATCH_SIZE, 2), STD)], dim=1)
        dropped = rng.uniform(0, "label dropout", step, ids, ()) < 0.2
        labels = (drawn // 2).masked_fill(dropped, NULL)
        yield TrainingBatch(moments[..., None, None], (), (), ids, step), labels, dropped


LossOf = Callable[[Trained, TrainingBatch, Tensor, Tensor], Tensor]


def train(net: MixtureNet, loss_of: LossOf, start: int, stop: int, rate: float) -> Trained:
    """Adam with a cosine decay; averages with a memory of 100 steps, which also teach."""
    optimizer = torch.optim.Adam(net.parameters())
    ema = EMA(list(net.parameters()), partial(decay_at, limit=0.99))
    names = [name for name, _ in net.named_parameters()]
    trained = Trained(net, averaged_network(net, dict(zip(names, ema.averages, strict=True))))
    for batch, labels, dropped in training_batches(start, stop):
        progress = (batch.step - start) / (stop - start)
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.02 + 0.98 * math.cos(math.pi / 2 * progress) ** 2)
        loss = loss_of(trained, batch, labels, dropped).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update()
    return trained


def plain_loss(trained: Trained, batch: TrainingBatch, labels: Tensor, _: Tensor) -> Tensor:
    """Flow matching; in every other step half of the hidden tokens skip the routed layer."""

    def network(x: Tensor, timestep_B: Tensor, labels_B: object, _: object) -> Tensor:
        assert isinstance(labels_B, Tensor)
        return trained.net(x, timestep_B, labels_B, keep_ids)

    keep_ids = None
    if batch.step % 2 == 0:
        draw = (batch.step, batch.sample_ids)
        keep_ids = draw_keep_ids(0, "hidden", *draw, NUM_HIDDEN_TOKENS, 0.5)
    return BASE.training_loss(network, batch, labels).loss_B


def guided_loss(objective: ModelGuidance) -> LossOf:
    def loss(trained: Trained, batch: TrainingBatch, labels: Tensor, dropped: Tensor) -> Tensor:
        null = torch.full_like(labels, NULL)
        conditions = ContrastedConditions(labels, (null,), dropped)
        return objective.training_loss(trained.net, trained.averaged, batch, conditions).loss_B

    return loss


@pytest.fixture(scope="module")
def plain() -> Trained:
    torch.manual_seed(0)
    return train(MixtureNet(), plain_loss, 0, NUM_STEPS, rate=2e-2)


# What is measured.


def sample(field: Field) -> Tensor:
    return integrate(field, NOISE, time_grid(20), "heun")


def spread(x_BC: Tensor) -> float:
    """Root mean squared distance to the nearest mean of class 0."""
    distance_BM = (x_BC[:, None] - means_of(0)).norm(dim=2)
    return distance_BM.min(dim=1).values.square().mean().sqrt().item()


def log_odds(x_BC: Tensor) -> float:
    """Mean of log p(class 0 | x) - log p(class 1 | x)."""
    return (log_density(x_BC, 1.0, 0) - log_density(x_BC, 1.0, 1)).mean().item()


def distance(one: Field, other: Field) -> float:
    """Root mean squared difference on noised samples of class 0."""
    data = means_of(0)[SAMPLE_IDS % 2] + STD * rng.normal(1, "data", 0, SAMPLE_IDS, (2,))
    squares = [
        (one(x_t, time, 0) - other(x_t, time, 0)).square().sum(dim=1).mean()
        for time in (0.1, 0.3, 0.5, 0.7, 0.9)
        for x_t in [(1 - time) * NOISE + time * data]
    ]
    return torch.stack(squares).mean().sqrt().item()


def zero(x_BC: Tensor, time: float, step: int) -> Tensor:
    return torch.zeros_like(x_BC)


@pytest.mark.slow
@pytest.mark.parametrize("label", [0, NULL])
def test_the_true_velocity_agrees_with_the_score(label: int) -> None:
    """Tweedie: z^ = -(1 - t) score, x^ = (x_t - (1 - t) z^) / t, v = x^ - z^."""
    for time in (0.2, 0.6, 0.95):
        x_t = NOISE.double().requires_grad_()
        (score,) = torch.autograd.grad(log_density(x_t, time, label).sum(), x_t)
        noise = -(1 - time) * score
        data = (x_t - (1 - time) * noise) / time
        torch.testing.assert_close(true_velocity(x_t, time, label), data - noise)


@pytest.mark.slow
def test_the_true_velocity_carries_noise_to_the_mixture() -> None:
    samples = sample(truth(0))
    assert spread(samples) == pytest.approx(math.sqrt(2) * STD, rel=0.05)
    share = (samples.sum(dim=1) > 0).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.05), "a standard deviation is 0.016"


@pytest.mark.slow
def test_flow_matching_learns_the_true_velocity(plain: Trained) -> None:
    for label, bound in ((0, 0.15), (NULL, 0.3)):
        size = distance(truth(label), zero)
        assert distance(plain.field(label), truth(label)) < bound * size
    assert (sample(plain.field(0)) - sample(truth(0))).norm(dim=1).mean() < 0.08


@pytest.mark.slow
@torch.no_grad()
def test_cfg_moves_samples_into_the_class_as_the_true_field_says(plain: Trained) -> None:
    unguided, guided = sample(plain.field(0)), sample(guide(plain.field(0), plain.field(NULL), 2.0))
    expected = sample(guide(truth(0), truth(NULL), 2.0))
    assert spread(expected) < 0.9 * spread(sample(truth(0)))
    assert spread(guided) < 0.85 * spread(unguided)
    assert spread(guided) == pytest.approx(spread(expected), rel=0.2)
    assert log_odds(guided) > log_odds(unguided) + 1
    # sample by sample: closer to where the true guided field leads than to the unguided result
    assert (guided - expected).norm(dim=1).mean() < 0.8 * (unguided - expected).norm(dim=1).mean()


@pytest.mark.slow
@torch.no_grad()
def test_a_weaker_branch_pushes_samples_to_higher_density(plain: Trained) -> None:
    """Both branches know the class; the weak one skips 80 % of the hidden tokens."""
    strong, weak = plain.field(0), plain.field(0, gamma=0.8)
    assert distance(weak, truth(0)) > 1.2 * distance(strong, truth(0)), "weak is worse"
    density = {
        omega: log_density(sample(guide(strong, weak, omega)), 1.0, 0).mean().item()
        for omega in (1.0, 1.5, 2.0)
    }
    assert density[2.0] > density[1.5] + 0.02 > density[1.0] + 0.04, density


@torch.no_grad()
def closest_omega(plain: Trained, field: Field) -> float:
    """The CFG scale at which the plain network is most like a field."""
    omegas = [1 + 0.05 * number for number in range(31)]
    return min(
        omegas,
        key=lambda omega: distance(field, guide(plain.field(0), plain.field(NULL), omega)),
    )


@pytest.mark.slow
def test_model_guidance_learns_the_guided_field(plain: Trained) -> None:
    """At the fixed point u' = u_c + (w - 1) (u' - u_null) the network is CFG at 1 / (2 - w)."""
    net = MixtureNet()
    net.load_state_dict(plain.net.state_dict())
    objective = ModelGuidance(BASE, ModelGuidanceConfig(scale=1.4))
    taught = train(net, guided_loss(objective), NUM_STEPS, NUM_STEPS + 300, rate=3e-3)
    omega = 1 / (2 - 1.4)
    cfg = guide(plain.field(0), plain.field(NULL), omega)
    assert distance(taught.field(0), cfg) < 0.6 * distance(plain.field(0), cfg)
    true_cfg = guide(truth(0), truth(NULL), omega)
    assert distance(taught.field(0), true_cfg) < 0.8 * distance(plain.field(0), true_cfg)
    assert closest_omega(plain, taught.field(0)) == pytest.approx(omega, abs=0.2)
    assert spread(sample(taught.field(0))) < 0.95 * spread(sample(plain.field(0)))


@pytest.mark.slow
def test_a_scale_aware_network_is_cfg_at_the_scale_that_it_is_fed(plain: Trained) -> None:
    net = MixtureNet(scale_input=True)
    net.load_state_dict(net.state_dict() | plain.net.state_dict())
    config = ModelGuidanceConfig(scale=ScaleInterval(low=1.0, high=2.0))
    objective = ModelGuidance(BASE, config, network_takes_scale=True)
    taught = train(net, guided_loss(objective), NUM_STEPS, NUM_STEPS + 300, rate=1e-2)
    omegas = [closest_omega(plain, taught.field(0, scale)) for scale in (1.0, 1.5, 2.0)]
    assert omegas == pytest.approx([1.0, 1.5, 2.0], abs=0.3)
