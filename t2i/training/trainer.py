"""The training run, in the order of its life: set up, load, report, step, log, save.

All progress is one integer, the number of steps done: learning rate, EMA decay, data position and
every random draw are functions of it. What an objective measures on its way (a few numbers) is
saved beside it. So the same call goes on where the last one stopped.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch import distributed as dist

from t2i.batch import TrainingBatch
from t2i.console import Progress, get_logger, progress
from t2i.models.storage import load_weights
from t2i.training.checkpoint import TrainingState
from t2i.training.ema import EMA
from t2i.training.engine import MOMENTS, Engine
from t2i.training.metrics import NUM_TIME_BINS, LossSums, Reporter, Window, memory_gb
from t2i.training.moving_objectives import make_objective
from t2i.training.run import Run, Start
from t2i.training.saving import Saver
from t2i.training.validation import validate

logger = get_logger("train")


def train(run: Run) -> bool:
    """Train until ``config.steps``; returns False when SIGTERM ended it early, after saving.

    Must be called by every process of the group that `engine.start_processes` joined.

    Raises:
        ValueError: a batch size that cannot be dealt out, too many skipped steps in a row.
        OSError: the last checkpoint could not be written.
    """
    return Trainer(run).run_to_end()


class Trainer:
    """One process of a run."""

    def __init__(self, run: Run) -> None:
        """Set up and load."""
        self.run, self.config = run, run.config
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.accumulation = run.config.accumulation(self.world_size)
        self._load(run.start)
        self.saver = Saver(
            run.folder / "checkpoints",
            self.engine,
            self.ema,
            run.settings,
            run.config.keep_checkpoints,
        )
        self.stop_wanted = False  # by a signal to this process
        self.stop_agreed = False  # by all processes, after the same step
        self.skipped_in_a_row = 0
        self.reporter: Reporter | None = None

    def run_to_end(self) -> bool:
        """See `train`."""
        previous = signal.signal(signal.SIGTERM, self._request_stop)
        try:
            self._report_start()
            finished = self._steps()
        finally:
            signal.signal(signal.SIGTERM, previous)
            if self.reporter is not None:
                self.reporter.close()
            self.engine.close()
        return finished

    # Load

    def _load(self, start: Start) -> None:
        self.step, self.skipped = start.step, start.skipped
        backbone = self.run.backbone
        if start.weights is not None:
            load_weights(backbone.model, dict(start.weights), start.source)
        self.objective = make_objective(self.config, backbone, self.run.device, start.objective)
        self.engine = Engine(backbone.network, backbone.model, self.config, self.world_size)
        self.ema = EMA(self.engine.masters, start.ema_updates)
        if start.ema is not None:
            self.engine.scatter(self.ema.averages, start.ema)
        if start.moments is not None:
            for kind in MOMENTS:
                self.engine.scatter(self.engine.moments(kind), start.moments[kind])
            self.engine.set_optimizer_steps(start.optimizer_steps)

    # Report

    def _report_start(self) -> None:
        if self.rank > 0:
            return
        settings_file = self.run.folder / "config.yaml"
        settings_file.write_text(self.run.settings)
        self.reporter = Reporter(
            self.run.folder, self.step, self.config.wandb, self.run.name, self.config.model_dump()
        )
        millions = sum(p.numel() for p in self.engine.parameters.values()) / 1e6
        logger.info(
            "%s: %s step %d of %d; %.1fM parameters, ZeRO %d, %s, %d process(es) x %d x %d samples",
            self.run.name,
            "going on from" if self.step else "starting at",
            self.step,
            self.config.steps,
            millions,
            self.config.zero_stage,
            self.config.precision,
            self.world_size,
            self.accumulation,
            self.config.micro_batch,
        )

    # Step

    def _steps(self) -> bool:
        batches = iter(()) if self.step >= self.config.steps else self.run.batches(self.step)
        window = Window()
        last_saved = self.step
        with self._progress() as bar:
            while self.step < self.config.steps:
                self._train_step(batches, window)
                self.step += 1
                logging = self._is_due(self.config.log_every)
                if logging:
                    self._log(window, bar)
                if self._is_due(self.config.validate_every):
                    self._validate()
                if self._is_due(self.config.checkpoint_every) or self.stop_agreed:
                    last_saved = self.step if self._save() else last_saved
                if self.stop_agreed:
                    break
                window = Window() if logging else window
        if last_saved < self.step:
            raise OSError(f"{self.saver.folder}: the last checkpoint could not be written")
        return self.step >= self.config.steps

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _train_step(self, batches: Iterator[TrainingBatch], window: Window) -> None:
        """One optimizer step: ``accumulation`` micro-batches, update, EMA."""
        sums = LossSums(self.run.device)
        learning_rate = self.config.learning_rate_at(self.step)
        keys: list[str] = []
        self.objective.begin_step(self.step, lambda: self.engine.gather(self.ema.averages))
        for _ in range(self.accumulation):
            with window.timed("data"):
                batch = next(batches)
            assert batch.step == self.step, f"batch of step {batch.step} at step {self.step}"
            batch = batch.to(self.run.device)
            with window.timed("text"):
                condition = self.run.backbone.conditioner.given(batch)
            losses = self.objective.training_loss(self.engine.network, batch, condition)
            sums.add(losses.loss_B, losses.timestep_B)
            self.engine.backward(losses.loss_B.mean())
            self.engine.step(learning_rate)
            keys += batch.keys
        if self.engine.was_applied:
            self.ema.update(self.config.ema_decay)
            self.objective.end_step()
            self.skipped_in_a_row = 0
            window.gradient_norm = self.engine.gradient_norm
            window.sums_2T += self._agree(sums.sums_2T)
        else:
            self._agree(sums.sums_2T)
            self._account_for_skipped(keys)
        window.steps += 1

    def _agree(self, sums_2T: Tensor) -> Tensor:
        """Sum the losses over ranks; the same message tells all ranks to stop if one was asked."""
        wish = torch.tensor([float(self.stop_wanted)], dtype=torch.float64)
        message = torch.cat([sums_2T.flatten(), wish.to(sums_2T.device)])
        dist.all_reduce(message)
        message = message.cpu()
        self.stop_agreed = bool(message[-1] > 0)
        return message[:-1].reshape(2, NUM_TIME_BINS)

    def _account_for_skipped(self, keys: Sequence[str]) -> None:
        """Write out the step's sample keys; stop after too many skipped steps in a row."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        file = self.run.folder / f"skipped-rank{self.rank}.jsonl"
        with file.open("a") as lines:
            lines.write(json.dumps({"step": self.step, "keys": list(keys)}) + "\n")
        if self.rank == 0:
            logger.warning("step %d skipped: gradient not finite; keys in %s", self.step, file)
        if self.skipped_in_a_row >= self.config.max_skipped_in_a_row:
            raise ValueError(
                f"{self.skipped_in_a_row} steps in a row had gradients that are not finite; look "
                f"at the samples in {file}, or go on from a checkpoint with a lower learning_rate"
            )

    # Log

    def _log(self, window: Window, bar: Progress | None) -> None:
        """On rank 0: write a line of metrics and move the progress line on."""
        if self.reporter is None or bar is None:
            return
        fields = window.fields(self.config.global_batch)
        self.reporter.write(
            {
                "step": self.step,
                **fields,
                "learning_rate": self.config.learning_rate_at(self.step - 1),
                "samples_seen": self.step * self.config.global_batch,
                "skipped": self.skipped,
                "memory_gb": memory_gb(self.run.device),
                **self.objective.state,
            }
        )
        shown = {"loss": fields["loss"], "images/s": fields["images_per_second"]}
        bar.update(window.steps, shown)

    def _progress(self) -> AbstractContextManager[Progress | None]:
        if self.rank == 0:
            return progress(self.run.name, self.config.steps, "step", initial=self.step)
        return nullcontext()

    def _validate(self) -> None:
        """Measure and report the validation loss, if there is anything to measure it on."""
        if not self.run.validation:
            return
        loss, by_time = validate(
            self.engine,
            self.objective,
            self.run.backbone.conditioner,
            self.run.validation,
            self.run.device,
        )
        self.objective.end_validation(loss)
        if self.reporter is not None:
            self.reporter.write(
                {"step": self.step, "validation_loss": loss, "validation_by_time": by_time}
            )
            logger.info("%s: step %d, validation loss %.4f", self.run.name, self.step, loss)

    def _save(self) -> bool:
        state = TrainingState(
            self.step,
            self.engine.optimizer_steps,
            self.ema.updates,
            self.skipped,
            self.objective.state,
        )
        return self.saver.save(state)

    def _request_stop(self, *_: object) -> None:
        self.stop_wanted = True
