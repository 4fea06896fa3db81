"""The validation loss of a run: the raw weights, dense, at fixed times on fixed held-out batches.

It draws by (seed, step of the held-out batch, sample), so training's own draws do not notice it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist

from t2i.batch import TrainingBatch
from t2i.training.backbone import Conditioner
from t2i.training.engine import Engine
from t2i.training.metrics import LossSums, mean_losses
from t2i.training.moving_objectives import MovingObjective

VALIDATION_TIMES = tuple((i + 0.5) / 8 for i in range(8))


def validate(
    engine: Engine,
    objective: MovingObjective,
    conditioner: Conditioner,
    batches: Sequence[TrainingBatch],
    device: torch.device,
) -> tuple[float, list[float | None]]:
    """Mean loss over all processes' ``batches``, and the same by time.

    Called by all processes together, each with equally many batches.
    """
    engine.network.eval()
    sums = LossSums(device)
    for batch in batches:
        batch = batch.to(device)
        condition = conditioner.given(batch)
        for timestep in VALIDATION_TIMES:
            losses = objective.validation_loss(engine.network, batch, condition, timestep)
            sums.add(losses.loss_B, losses.timestep_B)
    engine.network.train()
    total: Tensor = sums.sums_2T
    dist.all_reduce(total)
    return mean_losses(total)
