"""Proves the objective: its formula, its independence of the batch, and a gradient everywhere."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from t2i.batch import TrainingBatch
from t2i.encoders.text import TextStates
from t2i.flow import TimestepConfig
from t2i.models.perturbation import Perturbation
from t2i.models.sit import SiT
from t2i.models.sit_config import SiTConfig
from t2i.models.tr_dit import TRDiT
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.training.backbone import TextConditioned
from t2i.training.conditions import select
from t2i.training.objectives.flow_matching import FlowMatching

OBJECTIVE = FlowMatching(seed=1, gamma=0.5, timestep=TimestepConfig(), patch_size=2)
BERNOULLI = replace(OBJECTIVE, bernoulli=True)


def make_batch(size: int) -> TrainingBatch:
    generator = torch.Generator().manual_seed(0)
    moments = torch.randn(size, 8, 8, 8, generator=generator).half()
    keys = tuple(map(str, range(size)))
    return TrainingBatch(moments, keys, keys, torch.arange(size) + 100, step=3)


def make_text(size: int) -> TextStates:
    states = torch.randn(size, 4, 8, generator=torch.Generator().manual_seed(1))
    return TextStates(states, torch.ones(size, 4, dtype=torch.bool))


def make_network(zero_start: bool) -> TextConditioned:
    torch.manual_seed(0)
    config = TRDiTConfig(
        num_layers=3, width=16, num_heads=2, text_width=8, adaln_rank=4, routes=((1, 1),)
    )
    model = TRDiT(config)
    if not zero_start:  # zero gates and heads would hide most gradients
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return TextConditioned(model)


def make_sit() -> SiT:
    torch.manual_seed(0)
    config = SiTConfig(num_layers=3, width=16, num_heads=2, num_classes=3, routes=((1, 1),))
    model = SiT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("bernoulli", [False, True])
def test_a_draw_per_route_reaches_the_routes(bernoulli: bool) -> None:
    torch.manual_seed(0)
    config = SiTConfig(
        num_layers=3,
        width=16,
        num_heads=2,
        num_classes=3,
        routes=((0, 0), (2, 2)),
        draw_per_route=True,
    )
    model = SiT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    shared = replace(OBJECTIVE, bernoulli=bernoulli)
    own = replace(shared, num_draws=config.num_draws)
    batch, labels = make_batch(4), torch.tensor([0, 1, 2, 3])
    ids = own.draw(batch).keep_ids_BK
    assert ids is not None
    assert ids.shape[:2] == (2, 4)
    first, second = (
        objective.training_loss(model, batch, labels).loss_B for objective in (shared, own)
    )
    assert not torch.equal(first, second)
    third = replace(
        batch, moments=batch.moments[2:3], keys=("2",), sample_ids=batch.sample_ids[2:3]
    )
    alone = own.training_loss(model, third, labels[2:3]).loss_B
    torch.testing.assert_close(alone, second[2:3])


def test_a_network_that_answers_x_minus_z_has_no_loss() -> None:
    batch = make_batch(3)
    seen = []

    def network(x_t: Tensor, timestep_B: Tensor, *_: object) -> Tensor:
        data = OBJECTIVE.draw_latents(batch)
        seen.append((x_t, timestep_B))
        # x_t = (1 - t) z + t x  =>  x - z = (x - x_t) / (1 - t)
        return (data - x_t) / (1 - timestep_B.reshape(-1, 1, 1, 1))

    losses = OBJECTIVE.training_loss(network, batch, make_text(3))
    torch.testing.assert_close(losses.loss_B, torch.zeros(3), atol=1e-6, rtol=0)
    assert len(set(seen[0][1].tolist())) == 3, "each sample has its own time"


def test_the_draws_of_a_seed_and_their_losses_stay_what_they_are() -> None:
    """Golden values: a change would break runs that go on from a checkpoint."""
    seen = []

    def network(x_t: Tensor, timestep_B: Tensor, condition: object, keep_ids_BK: Tensor) -> Tensor:
        seen.append(keep_ids_BK[0].tolist())
        return x_t * 0.5

    losses = OBJECTIVE.training_loss(network, make_batch(3), make_text(3))
    assert losses.loss_B.tolist() == pytest.approx([2.868041, 3.111198, 1.974086], rel=1e-5)
    assert losses.timestep_B.tolist() == pytest.approx([0.3794162, 0.4238462, 0.8140401], rel=1e-5)
    assert seen == [[1, 2, 3, 4, 11, 12, 13, 14]]


def test_class_labels_are_a_condition_like_text() -> None:
    labels = torch.tensor([4, 0, 2])
    table = torch.arange(5.0)

    def network(x_t: Tensor, timestep_B: Tensor, labels_B: Tensor, keep_ids_BK: object) -> Tensor:
        return table[labels_B].reshape(-1, 1, 1, 1).expand_as(x_t)

    losses = OBJECTIVE.training_loss(network, make_batch(3), labels)
    target = OBJECTIVE.draw(make_batch(3)).velocity_BCHW
    for row, label in enumerate([4.0, 0.0, 2.0]):
        assert losses.loss_B[row].item() == pytest.approx(((target[row] - label) ** 2).mean())


def test_latents_follow_the_moments() -> None:
    batch = make_batch(2)
    moments = torch.cat([torch.full((2, 4, 32, 32), 0.5), torch.full((2, 4, 32, 32), 2.0)], dim=1)
    latents = OBJECTIVE.draw_latents(replace(batch, moments=moments.half()))
    # 8192 normal draws: the mean's standard error is 0.022, the deviation's 0.016
    assert latents.mean().item() == pytest.approx(0.5, abs=0.11)
    assert latents.std().item() == pytest.approx(2.0, abs=0.08)


@pytest.mark.parametrize(
    ("config", "median"),
    [
        (TimestepConfig(mean=-0.5, std=1.5), -0.5),
        (TimestepConfig(shift=3.0), -math.log(3)),
        (TimestepConfig(distribution="uniform"), 0.0),
        (TimestepConfig(distribution="uniform", shift=0.5), math.log(2)),
    ],
)
def test_training_times_follow_their_distribution(config: TimestepConfig, median: float) -> None:
    """logit(t) is normal or, for uniform t, logistic; a shift a adds -log a to it."""
    size = 20_000
    batch = TrainingBatch(torch.zeros(size, 2, 2, 2), (), (), torch.arange(size), step=0)
    logit = replace(OBJECTIVE, timestep=config).draw(batch).timestep_B.double().logit()
    if config.distribution == "uniform":
        levels = (logit - median).sigmoid()
    else:
        levels = torch.distributions.Normal(median, config.std).cdf(logit)
    distance = (levels.sort().values - (torch.arange(size) + 0.5) / size).abs().max()
    assert distance < 0.0138, "Kolmogorov-Smirnov: a false alarm in a thousand"


def test_a_loss_does_not_depend_on_the_rest_of_its_batch() -> None:
    network, batch, text = make_network(zero_start=False), make_batch(4), make_text(4)
    whole = OBJECTIVE.training_loss(network, batch, text)
    half = replace(
        batch,
        moments=batch.moments[2:],
        captions=batch.captions[2:],
        keys=batch.keys[2:],
        sample_ids=batch.sample_ids[2:],
    )
    part = OBJECTIVE.training_loss(network, half, select(text, torch.tensor([2, 3])))
    torch.testing.assert_close(part.loss_B, whole.loss_B[2:])
    torch.testing.assert_close(part.timestep_B, whole.timestep_B[2:])


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
def test_bernoulli_draws_keep_their_share_and_depend_on_the_sample_alone(gamma: float) -> None:
    """However a global batch is cut into micro-batches, as ranks and accumulation do."""
    objective = replace(BERNOULLI, gamma=gamma)
    size, num_tokens = 512, 64
    moments = torch.zeros(size, 2, 16, 16)
    whole = TrainingBatch(moments, (), (), torch.arange(size) + 7 * size, step=7)
    fractions = [len(tokens) / num_tokens for tokens in kept_tokens(objective, whole)]
    # a sample's fraction has a standard deviation of at most 0.063, the mean of 512 of 0.0028
    assert sum(fractions) / size == pytest.approx(1 - gamma, abs=0.012)
    assert len(set(fractions)) > 5, "samples keep different numbers of tokens"
    for cut in (1, 24, 128):
        parts = [
            replace(whole, moments=moments[first:][:cut], sample_ids=whole.sample_ids[first:][:cut])
            for first in range(0, size, cut)
        ]
        kept = [tokens for part in parts for tokens in kept_tokens(objective, part)]
        assert kept == kept_tokens(objective, whole)


def kept_tokens(objective: FlowMatching, batch: TrainingBatch) -> list[list[int]]:
    noised = objective.draw(batch)
    assert noised.keep_ids_BK is not None
    assert noised.keep_mask_BK is not None
    pairs = zip(noised.keep_ids_BK, noised.keep_mask_BK, strict=True)
    return [ids_K[mask_K].tolist() for ids_K, mask_K in pairs]


@pytest.mark.parametrize("model", ["tr_dit", "sit"])
def test_a_bernoulli_loss_is_that_of_the_sample_alone(model: str) -> None:
    """Alone a row has no padding; in the batch most rows have some. Gradients agree as well."""
    network, condition = make_network(zero_start=False), make_text(4)
    if model == "sit":
        network, condition = make_sit(), torch.tensor([0, 2, 1, 3])
    batch = make_batch(4)
    losses = BERNOULLI.training_loss(network, batch, condition)
    (2 * losses.loss_B.sum()).backward()
    together = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    for row in range(4):
        alone = replace(
            batch, moments=batch.moments[[row]], sample_ids=batch.sample_ids[[row]], keys=("a",)
        )
        assert BERNOULLI.draw(alone).keep_mask_BK.all()
        loss_B = BERNOULLI.training_loss(network, alone, select(condition, torch.tensor([row])))
        torch.testing.assert_close(loss_B.loss_B, losses.loss_B[[row]])
        (2 * loss_B.loss_B.sum()).backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, together[name], rtol=1e-4, atol=1e-4)
    assert not BERNOULLI.draw(batch).keep_mask_BK.all(), "some rows are padded"


def test_the_deep_path_is_dropped_for_its_share_of_samples_by_the_sample_alone() -> None:
    objective = replace(OBJECTIVE, deep_path_dropout=0.3)
    large = make_batch(1).moments.expand(4000, -1, -1, -1)
    ids = torch.arange(4000)
    batch = replace(make_batch(1), moments=large, sample_ids=ids, keys=("a",) * 4000)
    dropped_B = objective.draw(batch).drop_deep_B
    assert dropped_B is not None
    assert dropped_B.float().mean().item() == pytest.approx(0.3, abs=0.03)
    part = replace(batch, moments=large[7:9], sample_ids=ids[7:9], keys=("a",) * 2)
    assert torch.equal(objective.draw(part).drop_deep_B, dropped_B[7:9])
    assert not torch.equal(objective.draw(replace(batch, step=4)).drop_deep_B, dropped_B)
    assert OBJECTIVE.draw(batch).drop_deep_B is None
    assert objective.noise(batch, torch.zeros(4000), 0.0).drop_deep_B is None  # of validation


@pytest.mark.parametrize("model", ["tr_dit", "sit"])
def test_a_dropped_deep_path_is_that_of_path_drop_guidance(model: str) -> None:
    """The loss of a dropped sample is the loss of the network without its routed blocks."""
    network, condition = make_network(zero_start=False), make_text(8)
    if model == "sit":
        network, condition = make_sit(), torch.arange(8) % 3
    objective, batch = replace(OBJECTIVE, deep_path_dropout=0.5), make_batch(8)
    noised = objective.draw(batch)
    losses = objective.training_loss(network, batch, condition)
    context = condition
    own = network.model if isinstance(network, TextConditioned) else network
    if isinstance(network, TextConditioned):
        context = network.model.prepare_text(condition.states, condition.mask)
    shallow = own(
        noised.x_t_BCHW,
        noised.timestep_B,
        context,
        perturbation=Perturbation(skip_deep_path=True),
    )
    without = noised.losses(shallow, noised.velocity_BCHW).loss_B
    plain = OBJECTIVE.training_loss(network, batch, condition).loss_B
    dropped_B = noised.drop_deep_B
    assert dropped_B is not None
    assert 0 < dropped_B.sum() < 8
    expected = torch.where(dropped_B, without, plain)
    torch.testing.assert_close(losses.loss_B, expected)
    assert (without - plain).abs().min() > 1e-4


def test_another_step_draws_other_numbers() -> None:
    network, batch, text = make_network(zero_start=True), make_batch(4), make_text(4)
    first = OBJECTIVE.training_loss(network, batch, text)
    second = OBJECTIVE.training_loss(network, replace(batch, step=4), text)
    assert not torch.equal(first.timestep_B, second.timestep_B)


def test_every_parameter_gets_a_finite_gradient() -> None:
    network = make_network(zero_start=False)
    losses = OBJECTIVE.training_loss(network, make_batch(4), make_text(4))
    losses.loss_B.mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_a_tiny_set_is_overfitted() -> None:
    network, batch, text = make_network(zero_start=True), make_batch(4), make_text(4)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    history = []
    for _ in range(60):
        loss = OBJECTIVE.training_loss(network, batch, text).loss_B.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0], f"{history[0]:.3f} -> {history[-1]:.3f}"


def test_validation_is_dense_and_at_one_time() -> None:
    seen = []

    def network(x_t: Tensor, timestep_B: Tensor, *rest: object) -> Tensor:
        seen.append((timestep_B, rest[-1]))
        return torch.zeros_like(x_t)

    OBJECTIVE.validation_loss(network, make_batch(2), make_text(2), timestep=0.25)
    assert seen[0][0].tolist() == [0.25, 0.25]
    assert seen[0][1] is None
