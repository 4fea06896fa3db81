"""Proves the guided target against its formula, who keeps the plain one, and where gradients go.

Networks are written so that the expected target is a line of arithmetic: they answer
number(condition) + 10 * scale for every element, or a linear map of x_t.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from t2i.batch import TrainingBatch
from t2i.encoders.text import TextStates
from t2i.flow import TimestepConfig
from t2i.models.tr_dit import TRDiT
from t2i.models.tr_dit_config import TRDiTConfig
from t2i.training.averages.ema import averaged_network
from t2i.training.backbone import TextConditioned
from t2i.training.conditions import ContrastedConditions, draw_references, repeat
from t2i.training.objectives.flow_matching import FlowMatching, Losses
from t2i.training.objectives.model_guidance import ModelGuidance
from t2i.training.objectives.model_guidance_config import (
    AutoScale,
    ModelGuidanceConfig,
    ScaleInterval,
    ScaleState,
)

BASE = FlowMatching(seed=1, gamma=0.5, timestep=TimestepConfig(), patch_size=2)
NULL = torch.full((4,), 9)
LABELS = torch.tensor([3, 1, 9, 2])
DROPPED = torch.tensor([False, False, True, False])
CONDITIONS = ContrastedConditions(LABELS, (NULL,), DROPPED)


def label_network(
    x_t: Tensor,
    timestep_B: Tensor,
    labels_B: Tensor,
    keep: object,
    guidance_scale_B: Tensor | float = 0.0,
) -> Tensor:
    """label / 10 + 10 * scale, plus a tenth of x_t."""
    number_B = labels_B / 10 + 10 * guidance_scale_B
    return 0.1 * x_t + number_B.reshape(-1, 1, 1, 1)


def guided(config: ModelGuidanceConfig, auto: ScaleState | None = None) -> ModelGuidance:
    return ModelGuidance(BASE, config, config.feeds_scale, auto or ScaleState())


def errors(batch: TrainingBatch, shift: list[float]) -> Tensor:
    """Losses of `label_network` on LABELS when the plain target is moved by one number each."""
    noised = BASE.draw(batch)
    predicted = label_network(noised.x_t_BCHW, noised.timestep_B, LABELS, None)
    target = noised.velocity_BCHW + torch.tensor(shift).reshape(-1, 1, 1, 1)
    return (predicted - target).square().mean(dim=(1, 2, 3))


def assert_same(one: Losses, other: Losses) -> None:
    assert torch.equal(one.loss_B, other.loss_B)
    assert torch.equal(one.timestep_B, other.timestep_B)


@pytest.mark.parametrize(
    "objective",
    [
        guided(ModelGuidanceConfig(scale=1.0)),
        guided(ModelGuidanceConfig(scale=AutoScale())),
        guided(ModelGuidanceConfig(scale=1.5, from_step=4)),
        guided(ModelGuidanceConfig(scale=1.5, below_noise_level=1e-6)),
    ],
    ids=["scale 1", "automatic at its start", "before from_step", "no time below the level"],
)
def test_unguided_is_plain_flow_matching_to_the_bit(
    objective: ModelGuidance, batch: TrainingBatch
) -> None:
    plain = BASE.training_loss(label_network, batch, LABELS)
    assert_same(objective.training_loss(label_network, label_network, batch, CONDITIONS), plain)
    validation = objective.validation_loss(label_network, batch, LABELS, 0.3)
    assert_same(validation, BASE.validation_loss(label_network, batch, LABELS, 0.3))


@pytest.mark.parametrize("auto", [False, True])
def test_the_target_moves_by_scale_minus_one_times_the_difference(
    auto: bool, batch: TrainingBatch
) -> None:
    config = ModelGuidanceConfig(scale=AutoScale() if auto else 1.5, from_step=batch.step)
    objective = guided(config, ScaleState(scale=1.5) if auto else None)
    losses = objective.training_loss(label_network, label_network, batch, CONDITIONS)
    # 0.5 * (label - 9) / 10; the third sample was dropped
    torch.testing.assert_close(losses.loss_B, errors(batch, [-0.3, -0.4, 0.0, -0.35]))


def test_dropped_samples_keep_the_plain_loss_to_the_bit(batch: TrainingBatch) -> None:
    losses = guided(ModelGuidanceConfig()).training_loss(
        label_network, label_network, batch, CONDITIONS
    )
    plain = BASE.training_loss(label_network, batch, LABELS).loss_B
    assert (losses.loss_B == plain).tolist() == DROPPED.tolist()


def test_only_times_below_the_noise_level_are_guided(batch: TrainingBatch) -> None:
    level = 1 - BASE.draw(batch).timestep_B
    threshold = level.median().item()  # of four numbers: the second smallest
    config = ModelGuidanceConfig(below_noise_level=threshold)
    conditions = ContrastedConditions(LABELS, (NULL,))
    losses = guided(config).training_loss(label_network, label_network, batch, conditions)
    shift = torch.where(level < threshold, 0.5 * (LABELS - 9) / 10, 0.0)
    torch.testing.assert_close(losses.loss_B, errors(batch, shift.tolist()))
    assert (level < threshold).sum() == 1


def test_without_an_empty_class_the_mean_over_references_is_contrasted(
    batch: TrainingBatch,
) -> None:
    drawn = draw_references(8, 3, BASE.seed, batch.step, sample_ids_B=batch.sample_ids)
    references = drawn.unbind(dim=1)
    losses = guided(ModelGuidanceConfig(num_references=3)).training_loss(
        label_network, label_network, batch, ContrastedConditions(LABELS, references)
    )
    means = [sum(int(labels[row]) for labels in references) / 3 for row in range(4)]
    shift = [0.5 * (int(LABELS[row]) - means[row]) / 10 for row in range(4)]
    torch.testing.assert_close(losses.loss_B, errors(batch, shift))


def test_a_scale_aware_network_is_fed_its_scale_and_the_teacher_one_and_zero(
    batch: TrainingBatch,
) -> None:
    fed, asked = [], []

    def network(*inputs: Tensor, guidance_scale_B: Tensor) -> Tensor:
        fed.append(guidance_scale_B)
        return label_network(*inputs)

    def teacher(*inputs: Tensor, guidance_scale_B: Tensor) -> Tensor:
        asked.append((inputs[2][0].item(), *guidance_scale_B.unique().tolist()))
        return label_network(*inputs, guidance_scale_B)

    objective = guided(ModelGuidanceConfig(scale=ScaleInterval(low=1.0, high=3.0)))
    losses = objective.training_loss(network, teacher, batch, CONDITIONS)
    scale = fed[0]
    assert scale[2] == 0, "a dropped sample is the network at (null, 0)"
    assert ((scale[~DROPPED] >= 1) & (scale[~DROPPED] < 3)).all()
    assert len(scale.unique()) == 4
    assert sorted(asked) == [(3, 1.0), (9, 0.0)]
    # u~(c, 1) - u~(null, 0) = (label - 9) / 10 + 10
    shift = torch.where(DROPPED, 0.0, (scale - 1) * ((LABELS - 9) / 10 + 10))
    torch.testing.assert_close(losses.loss_B, errors(batch, shift.tolist()))
    objective.validation_loss(network, batch, LABELS, 0.5)
    assert fed[1].tolist() == [1, 1, 1, 1], "validation is of the plain prediction"


def test_scale_aware_references_are_asked_at_one(batch: TrainingBatch) -> None:
    asked = []

    def teacher(*inputs: Tensor, guidance_scale_B: Tensor) -> Tensor:
        asked.append(guidance_scale_B.unique().tolist())
        return label_network(*inputs)

    config = ModelGuidanceConfig(scale=ScaleInterval(), num_references=2)
    conditions = ContrastedConditions(LABELS, (NULL, NULL))
    guided(config).training_loss(label_network, teacher, batch, conditions)
    assert asked == [[1.0], [1.0], [1.0]]


def test_scales_are_uniform_in_their_interval(batch: TrainingBatch) -> None:
    fed = []

    def network(*inputs: Tensor, guidance_scale_B: Tensor) -> Tensor:
        fed.append(guidance_scale_B)
        return label_network(*inputs)

    objective = guided(ModelGuidanceConfig(scale=ScaleInterval(low=0.5, high=2.5)))
    many = TrainingBatch(
        torch.zeros(4000, 2, 2, 2), ("",) * 4000, ("",) * 4000, torch.arange(4000), 0
    )
    labels = torch.zeros(4000, dtype=torch.int64)
    objective.training_loss(network, label_network, many, ContrastedConditions(labels, (labels,)))
    quantiles = fed[0].quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    # the standard error of a quartile is 0.014
    assert quantiles.tolist() == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.5], abs=0.06)


def test_an_interval_without_a_scale_input_is_refused() -> None:
    with pytest.raises(ValueError, match="no scale input"):
        ModelGuidance(BASE, ModelGuidanceConfig(scale=ScaleInterval()), network_takes_scale=False)


@pytest.mark.parametrize("teacher_skips_tokens", [False, True])
def test_the_network_is_routed_and_the_teacher_only_when_asked_to(
    teacher_skips_tokens: bool, batch: TrainingBatch
) -> None:
    seen: dict[str, list[object]] = {"network": [], "teacher": []}

    def watched(name: str) -> Callable[..., Tensor]:
        def network(x_t: Tensor, timestep_B: Tensor, labels_B: Tensor, keep: object) -> Tensor:
            seen[name].append(keep)
            return label_network(x_t, timestep_B, labels_B, keep)

        return network

    config = ModelGuidanceConfig(teacher_skips_tokens=teacher_skips_tokens)
    guided(config).training_loss(watched("network"), watched("teacher"), batch, CONDITIONS)
    routed = seen["network"][0]
    assert isinstance(routed, Tensor)
    assert torch.equal(routed, BASE.draw(batch).keep_ids_BK)
    assert len(seen["teacher"]) == 2
    for keep in seen["teacher"]:
        assert (isinstance(keep, Tensor) and torch.equal(keep, routed)) == teacher_skips_tokens


@pytest.mark.parametrize("teacher_skips_tokens", [False, True])
def test_a_routed_teacher_has_the_mask_of_a_bernoulli_draw(
    teacher_skips_tokens: bool, batch: TrainingBatch
) -> None:
    seen: dict[str, list[Tensor | None]] = {"network": [], "teacher": []}

    def watched(name: str) -> Callable[..., Tensor]:
        def network(*inputs: Tensor, keep_mask_BK: Tensor | None = None) -> Tensor:
            seen[name].append(keep_mask_BK)
            return label_network(*inputs)

        return network

    base = replace(BASE, bernoulli=True)
    objective = ModelGuidance(base, ModelGuidanceConfig(teacher_skips_tokens=teacher_skips_tokens))
    objective.training_loss(watched("network"), watched("teacher"), batch, CONDITIONS)
    (mask,) = seen["network"]
    assert mask is not None
    assert torch.equal(mask, base.draw(batch).keep_mask_BK)
    assert len(seen["teacher"]) == 2
    assert all((other is mask) == teacher_skips_tokens for other in seen["teacher"])


def test_no_gradient_reaches_the_target(batch: TrainingBatch) -> None:
    """One weight serves network and teacher; the gradient is that of the network's share alone."""

    def loss(weight: Tensor, teacher_weight: Tensor) -> Tensor:
        def scaled(weight: Tensor) -> Callable[..., Tensor]:
            return lambda x_t, timestep_B, labels_B, keep: (
                weight * label_network(x_t, timestep_B, labels_B, keep)
            )

        objective = guided(ModelGuidanceConfig())
        losses = objective.training_loss(scaled(weight), scaled(teacher_weight), batch, CONDITIONS)
        return losses.loss_B.double().mean()

    weight = torch.tensor(1.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(weight, weight), weight)
    h, fixed = 0.01, torch.tensor(1.5)
    through_network = (loss(fixed + h, fixed) - loss(fixed - h, fixed)) / (2 * h)
    through_both = (loss(fixed + h, fixed + h) - loss(fixed - h, fixed - h)) / (2 * h)
    assert gradient.item() == pytest.approx(through_network.item(), rel=1e-3)
    assert abs(gradient.item() - through_both.item()) > 0.05 * abs(gradient.item())


def test_text_is_guided_as_labels_are(batch: TrainingBatch) -> None:
    """TR-DiT, its averages as the teacher, the null text padded like the batch's."""
    config = TRDiTConfig(
        num_layers=3, width=16, num_heads=2, text_width=8, adaln_rank=4, routes=((1, 1),)
    )
    generator = torch.Generator().manual_seed(0)
    network = TextConditioned(TRDiT(config))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    averages = {name: 0.9 * p.detach() for name, p in network.named_parameters()}
    teacher = averaged_network(network, averages)
    mask = torch.tensor([[True, True]] * 3 + [[True, False]])
    states = torch.randn(4, 2, 8, generator=generator)
    text, null = TextStates(states, mask), TextStates(torch.ones(1, 2, 8), mask[3:])
    conditions = ContrastedConditions(text, (repeat(null, 4),))
    losses = guided(ModelGuidanceConfig()).training_loss(network, teacher, batch, conditions)
    noised = BASE.draw(batch)
    x_t, times = noised.x_t_BCHW, noised.timestep_B
    nulls = TextStates(torch.ones(4, 2, 8), mask[3:].expand(4, 2))
    contrast = teacher(x_t, times, text, None) - teacher(x_t, times, nulls, None)
    error = network(x_t, times, text, noised.keep_ids_BK) - noised.velocity_BCHW - 0.5 * contrast
    torch.testing.assert_close(losses.loss_B, error.square().mean(dim=(1, 2, 3)))
    assert contrast.abs().mean() > 0.01
    losses.loss_B.mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name


def test_a_loss_does_not_depend_on_the_rest_of_its_batch(
    batch: TrainingBatch, select_samples: Callable[[TrainingBatch, list[int]], TrainingBatch]
) -> None:
    rows = [3, 1]

    def conditions(samples: TrainingBatch, labels: Tensor) -> ContrastedConditions:
        drawn = draw_references(8, 2, 1, samples.step, samples.sample_ids)
        return ContrastedConditions(labels, drawn.unbind(dim=1))

    config = ModelGuidanceConfig(scale=ScaleInterval(), num_references=2, below_noise_level=0.6)
    objective = guided(config)
    whole = objective.training_loss(label_network, label_network, batch, conditions(batch, LABELS))
    some = select_samples(batch, rows)
    part = objective.training_loss(
        label_network, label_network, some, conditions(some, LABELS[rows])
    )
    torch.testing.assert_close(part.loss_B, whole.loss_B[rows])
