"""Proves the objective of two heads: its formula, who gets which gradient, what validation sees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from t2i.batch import TrainingBatch
from t2i.flow import TimestepConfig
from t2i.models.sit import SiT
from t2i.models.sit_config import SiTConfig
from t2i.training.objectives.flow_matching import FlowMatching
from t2i.training.objectives.internal import InternalFlowMatching

BASE = FlowMatching(seed=1, gamma=0.5, timestep=TimestepConfig(), patch_size=2)
LABELS = torch.tensor([0, 2, 1, 3])


@pytest.fixture
def batch() -> TrainingBatch:
    moments = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    keys = tuple("abcd")
    return TrainingBatch(moments, keys, keys, torch.arange(4) + 100, step=3)


def make_sit() -> SiT:
    torch.manual_seed(0)
    config = SiTConfig(
        num_layers=4, width=16, num_heads=2, num_classes=3, routes=((2, 2),), internal_after=0
    )
    model = SiT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_the_loss_is_the_sum_of_both_heads(batch: TrainingBatch) -> None:
    """With heads that miss the velocity by known numbers."""
    velocity = BASE.draw(batch).velocity_BCHW

    def network(*_: object, internal: bool = False, **__: object) -> Tensor:
        return torch.stack((velocity + 2.0, velocity - 3.0)) if internal else velocity + 2.0

    losses = InternalFlowMatching(BASE, weight=0.5).training_loss(network, batch, LABELS)
    torch.testing.assert_close(losses.loss_B, torch.full((4,), 4.0 + 0.5 * 9.0))
    seen = InternalFlowMatching(BASE, 0.5).validation_loss(network, batch, LABELS, 0.3)
    plain = BASE.validation_loss(network, batch, LABELS, 0.3)
    assert torch.equal(seen.loss_B, plain.loss_B)


def test_each_head_gets_its_own_gradient_and_late_blocks_that_of_the_last(
    batch: TrainingBatch,
) -> None:
    """So the internal head's weight scales its own gradient, and nothing of blocks after it."""
    gradients = []
    for weight in (0.5, 1.0):
        model = make_sit()
        losses = InternalFlowMatching(BASE, weight).training_loss(model, batch, LABELS)
        losses.loss_B.mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    half, whole = gradients
    for name, gradient in half.items():
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name
        if name.startswith("internal_head"):
            torch.testing.assert_close(2 * gradient, whole[name])
        elif name.startswith(("head", "blocks.1", "blocks.2", "blocks.3")):
            torch.testing.assert_close(gradient, whole[name])
    assert not torch.allclose(half["blocks.0.mlp.out.weight"], whole["blocks.0.mlp.out.weight"])
