"""Validation of a run: the loss of its weights and of their average, and samples of the average.

The loss is dense, at fixed times on fixed held-out batches. It draws by (seed, step of the held-out
batch, sample) and samples draw by their own seeds, so training's own draws do not notice either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from t2i.batch import TrainingBatch
from t2i.console import get_logger
from t2i.image_pipeline import NotFiniteError
from t2i.training.averages.averaged_copy import AveragedCopy
from t2i.training.averages.ema import EMA
from t2i.training.engine import Engine
from t2i.training.monitoring.held_out import TIMES, held_out_losses
from t2i.training.monitoring.metrics import LossSums, mean_losses
from t2i.training.monitoring.reporter import Reporter
from t2i.training.monitoring.swapped_words import swapped_word_excess
from t2i.training.monitoring.validation_samples import draw_samples, write_samples
from t2i.training.objectives.moving import MovingObjective
from t2i.training.run import Run

if TYPE_CHECKING:
    from PIL.Image import Image

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
        batches = [batch.to(self.run.device) for batch in self.run.validation]
        self.engine.network.eval()
        loss, by_time = self._mean(self._losses(self.engine.network, batches))
        self.engine.network.train()
        with self.average.filled(self._averages(), self.dtype, self.run.device):
            losses = self._losses(self.average.network, batches)
            ema_loss, ema_by_time = self._mean(losses)
            swapped = self._swapped_words(batches, losses)
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
            images = {}
        self._measure_quality(step, images, reporter)
        if reporter is None or not images:
            return
        folder = self.run.folder / "samples" / f"step-{step:08d}"
        try:
            sheet = write_samples(self.run.samples, images, folder)
        except OSError as error:  # a full disk: images are not worth the end of a run
            logger.error("samples of step %d not written: %s", step, error)
            return
        reporter.show_image(step, "samples", sheet)
        logger.info("%s: step %d, samples in %s", self.run.name, step, sheet)

    def _measure_quality(
        self, step: int, images: Mapping[str, Sequence[Image]], reporter: Reporter | None
    ) -> None:
        """Tell the objective how good the first method's samples are; the first process has them."""
        assert self.run.samples is not None
        if self.run.samples.quality is None:
            return
        found: list[float | None] = [None]
        if images:
            found = [self.run.samples.quality(next(iter(images.values())))]
        dist.broadcast_object_list(found, src=0)
        if found[0] is None:
            return
        self.objective.end_sampling(found[0])
        if reporter is not None:
            reporter.write({"step": step, "sample_quality": found[0]})
            logger.info("%s: step %d, quality of samples %.4f", self.run.name, step, found[0])

    def _averages(self) -> Any:
        return self.engine.gather(self.ema.averages)

    def _losses(self, network: nn.Module, batches: Sequence[TrainingBatch]) -> list[Tensor]:
        """Of each batch, (times, B)."""
        conditioner = self.run.backbone.conditioner
        return [
            held_out_losses(network, self.objective, conditioner, batch, TIMES) for batch in batches
        ]

    def _mean(self, losses: Sequence[Tensor]) -> tuple[float, list[float | None]]:
        """Mean over the batches of all processes, and the same by time."""
        sums = LossSums(self.run.device)
        for losses_TB in losses:
            for loss_B, time in zip(losses_TB, TIMES, strict=True):
                sums.add(loss_B, torch.full_like(loss_B, time))
        dist.all_reduce(sums.sums_2T)
        return mean_losses(sums.sums_2T)

    def _swapped_words(
        self, batches: Sequence[TrainingBatch], losses: Sequence[Tensor]
    ) -> dict[str, float | None]:
        """Of the average, which must be filled; {} when no words are to be swapped."""
        if not self.run.swapped_words:
            return {}
        return swapped_word_excess(
            self.average.network,
            self.objective,
            self.run.backbone.conditioner,
            batches,
            losses,
            self.run.swapped_words,
            TIMES,
        )
