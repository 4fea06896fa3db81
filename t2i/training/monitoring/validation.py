"""Validation of a run: the loss of its weights and of their average, and samples of the average.

The loss is dense, at fixed times on fixed held-out batches. It draws by (seed, step of the held-out
batch, sample) and samples draw by their own seeds, so training's own draws do not notice either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from t2i.batch import TrainingBatch
from t2i.console import get_logger
from t2i.image_pipeline import NotFiniteError
from t2i.training.averages.averaged_copy import AveragedCopy
from t2i.training.averages.ema import EMA
from t2i.training.backbone import Conditioner
from t2i.training.engine import Engine
from t2i.training.monitoring.metrics import LossSums, mean_losses
from t2i.training.monitoring.reporter import Reporter
from t2i.training.monitoring.swapped_words import swapped_word_excess
from t2i.training.monitoring.validation_samples import draw_samples, write_samples
from t2i.training.objectives.moving import MovingObjective
from t2i.training.run import Run

VALIDATION_TIMES = tuple((i + 0.5) / 8 for i in range(8))

logger = get_logger("train")


class Validator:
    """Measures and samples a run; its methods are called by all processes together."""

    def __init__(
        self, run: Run, engine: Engine, ema: EMA, objective: MovingObjective, average: AveragedCopy
    ) -> None:
        self.run, self.engine, self.ema, self.objective = run, engine, ema, objective
        self.average = average
        self.dtype = torch.bfloat16 if run.config.precision == "bf16" else torch.float32

    def measure(self, step: int, reporter: Reporter | None) -> None:
        """The losses of weights and average; the objective is told that of the weights."""
        self.engine.network.eval()
        loss, by_time = self._loss(self.engine.network)
        self.engine.network.train()
        with self.average.filled(self._averages(), self.dtype, self.run.device):
            ema_loss, ema_by_time = self._loss(self.average.network)
            swapped = self._swapped_words()
        self.objective.end_validation(loss)
        fields: Mapping[str, Any] = {
            "step": step,
            "validation_loss": loss,
            "validation_by_time": by_time,
            "ema_validation_loss": ema_loss,
            "ema_validation_by_time": ema_by_time,
            **({"ema_swapped_words": swapped} if swapped else {}),
        }
        if reporter is not None:
            reporter.write(fields)
            line = "%s: step %d, validation loss %.4f, of the average %.4f"
            logger.info(line, self.run.name, step, loss, ema_loss)

    def sample(self, step: int, reporter: Reporter | None) -> None:
        """Images of the average, each process its share; the first one writes and shows them."""
        assert self.run.samples is not None
        try:
            with self.average.filled(self._averages(), self.dtype, self.run.device):
                images = draw_samples(
                    self.run.samples,
                    self.average.model,
                    self.run.config.micro_batch,
                    self.run.device,
                )
        except NotFiniteError as error:  # what the weights are worth, their losses tell
            logger.error("no samples of step %d: %s", step, error)
            return
        if reporter is None:
            return
        folder = self.run.folder / "samples" / f"step-{step:08d}"
        try:
            sheet = write_samples(self.run.samples, images, folder)
        except OSError as error:  # a full disk: images are not worth the end of a run
            logger.error("samples of step %d not written: %s", step, error)
            return
        reporter.show_image(step, "samples", sheet)
        logger.info("%s: step %d, samples in %s", self.run.name, step, sheet)

    def _averages(self) -> Any:
        return self.engine.gather(self.ema.averages)

    def _swapped_words(self) -> dict[str, float | None]:
        """Of the average, which must be filled; {} when no words are to be swapped."""
        if not self.run.swapped_words:
            return {}
        return swapped_word_excess(
            self.average.network,
            self.objective,
            self.run.backbone.conditioner,
            self.run.validation,
            self.run.swapped_words,
            VALIDATION_TIMES,
            self.run.device,
        )

    def _loss(self, network: nn.Module) -> tuple[float, list[float | None]]:
        return validation_loss(
            network,
            self.objective,
            self.run.backbone.conditioner,
            self.run.validation,
            self.run.device,
        )


def validation_loss(
    network: nn.Module,
    objective: MovingObjective,
    conditioner: Conditioner,
    batches: Sequence[TrainingBatch],
    device: torch.device,
) -> tuple[float, list[float | None]]:
    """Mean loss of a network over all processes' ``batches``, and the same by time.

    Called by all processes together, each with equally many batches.
    """
    sums = LossSums(device)
    for batch in batches:
        batch = batch.to(device)
        condition = conditioner.given(batch)
        for timestep in VALIDATION_TIMES:
            losses = objective.validation_loss(network, batch, condition, timestep)
            sums.add(losses.loss_B, losses.timestep_B)
    total: Tensor = sums.sums_2T
    dist.all_reduce(total)
    return mean_losses(total)
