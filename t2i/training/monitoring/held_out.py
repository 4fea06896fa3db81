"""Losses of a network on held-out batches, kept by time and sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from t2i.batch import TrainingBatch
from t2i.training.backbone import Conditioner
from t2i.training.objectives.moving import MovingObjective

TIMES = tuple((i + 0.5) / 8 for i in range(8))


@torch.no_grad()
def held_out_losses(
    network: nn.Module,
    objective: MovingObjective,
    conditioner: Conditioner,
    batch: TrainingBatch,
    times: Sequence[float],
) -> Tensor:
    """(times, B) float64, dense, each sample at each of ``times``; the batch is on the device."""
    condition = conditioner.given(batch)
    losses = [objective.validation_loss(network, batch, condition, time).loss_B for time in times]
    return torch.stack(losses).double()
