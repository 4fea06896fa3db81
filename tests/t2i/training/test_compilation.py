"""Proves that blocks compiled for training teach the same: losses and gradients of every backbone, with
routing and recomputation, at more shapes than torch compiles by default."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from t2i.batch import TrainingBatch
from t2i.flow import TimestepConfig
from t2i.training.backbone import Backbone, compile_blocks
from t2i.training.conditions import Condition
from t2i.training.objectives.flow_matching import FlowMatching
from t2i.training.training_config import TrainingConfig

TINY = runpy.run_path(str(Path(__file__).with_name("tiny_run.py")))
OBJECTIVE = FlowMatching(seed=0, gamma=0.5, timestep=TimestepConfig(), patch_size=2)


def make_backbone(model: str) -> Backbone:
    """A tiny model that recomputes, with weights that are nowhere zero."""
    backbone: Backbone = TINY["make_backbone"](model)
    backbone.model.config = backbone.model.config.model_copy(
        update={"gradient_checkpointing": True}
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return backbone


def loss_and_gradient(
    backbone: Backbone, batch: TrainingBatch, condition: Condition
) -> tuple[torch.Tensor, torch.Tensor]:
    loss = OBJECTIVE.training_loss(backbone.network, batch, condition).loss_B
    parameters = list(backbone.model.parameters())
    gradients = torch.autograd.grad(loss.mean(), parameters, allow_unused=True)
    return loss, torch.cat([g.flatten() for g in gradients if g is not None])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tr_dit", "sit", "mask_dit"])
def test_compiled_blocks_teach_the_same(model: str) -> None:
    batch: TrainingBatch = TINY["micro_batch"](3, 0, 4)
    eager, compiled = make_backbone(model), make_backbone(model)
    compile_blocks(compiled.model, backend="aot_eager")
    condition = eager.conditioner.given(batch)
    for one, other in zip(
        loss_and_gradient(eager, batch, condition),
        loss_and_gradient(compiled, batch, condition),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_every_length_of_captions_is_compiled() -> None:
    batch: TrainingBatch = TINY["micro_batch"](3, 0, 2)
    backbone = make_backbone("tr_dit")
    compile_blocks(backbone.model, backend="eager")
    text: Any = backbone.conditioner.given(batch)
    for length in range(1, 11):
        states = text.states[:, :1].expand(-1, length, -1)
        longer = type(text)(states, torch.ones(states.shape[:2], dtype=torch.bool))
        assert loss_and_gradient(backbone, batch, longer)[0].isfinite().all()


def test_sharded_weights_are_not_compiled() -> None:
    with pytest.raises(ValueError, match=r"compile needs whole weights.*set zero_stage to 2"):
        TrainingConfig(compile=True, zero_stage=3)
