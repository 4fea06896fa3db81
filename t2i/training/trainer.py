"""The training run, in the order of its life: set up, load, report, step, log, save.

All progress is one integer, the number of steps done: learning rate, EMA decay, data position and
every random draw are functions of it. What an objective measures on its way (a few numbers) is
saved beside it. So the same call goes on where the last one stopped.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
import yaml
from torch import Tensor
from torch import distributed as dist

from t2i.batch import TrainingBatch
from t2i.console import Progress, get_logger, progress
from t2i.encoders.text import TextStates
from t2i.models.storage import load_weights
from t2i.training.averages.averaged_copy import AveragedCopy
from t2i.training.averages.ema import EMA, decay_at
from t2i.training.averages.power_averages import snapshot_saver, start_power_averages
from t2i.training.backbone import compile_blocks
from t2i.training.checkpoint import TrainingState
from t2i.training.engine import MOMENTS, Engine
from t2i.training.monitoring.metrics import LossSums, Window, memory_gb
from t2i.training.monitoring.profiling import Profile, check_profile_steps, communication_traced
from t2i.training.monitoring.reporter import Reporter
from t2i.training.monitoring.throughput import batch_flops, peak_tflops
from t2i.training.monitoring.validation import Validator
from t2i.training.monitoring.watchdog import Watchdog
from t2i.training.objectives.moving import make_objective
from t2i.training.run import Run, Start
from t2i.training.saving import Saver, training_partitions
from t2i.training.spikes import SkippedSteps, SpikeGuard

logger = get_logger("train")


def train(run: Run) -> bool:
    """Train until ``config.steps``; returns False when SIGTERM ended it early, after saving.

    Must be called by every process of the group that `engine.start_processes` joined.

    A phase of a step that outlasts ``config.timeout_minutes`` ends the process; see `watchdog`.

    Raises:
        ValueError: a batch size that cannot be dealt out, too many skipped steps in a row, steps to
            profile that the run does not go through.
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
            lambda: training_partitions(self.engine, {"ema": self.ema, **self.power_averages}),
            run.settings,
            run.config.keep_checkpoints,
            run.config.keep_at,
            run.config.checkpoint_minutes,
            run.on_checkpoint,
        )
        self.snapshots: Saver | None = None
        if run.config.snapshot_every:
            self.snapshots = snapshot_saver(run, self.engine, self.power_averages)
        self.stop_wanted = False  # by a signal to this process
        self.stop_agreed = False  # by all processes, after the same step
        self.save_agreed = False  # likewise, because checkpoint_minutes have passed
        self.epoch: int | None = None
        self.reporter: Reporter | None = None
        self.has_warned_of_cut = False
        self.profile: Profile | None = None
        if run.profile is not None:
            check_profile_steps(run.profile, self.config.steps)
            self.profile = Profile(run.profile, run.folder, self.step) if self.rank == 0 else None
        seconds = 60 * self.config.timeout_minutes
        self.watchdog = Watchdog(run.folder, self.rank, self.world_size, seconds, self.step)
        self.window = Window(run.device)

    def run_to_end(self) -> bool:
        """See `train`."""
        previous = signal.signal(signal.SIGTERM, self._request_stop)
        try:
            self._report_start()
            self.watchdog.start()
            finished = self._steps()
        finally:
            signal.signal(signal.SIGTERM, previous)
            self.watchdog.close()
            if self.reporter is not None:
                self.reporter.close()
            self.engine.close()
        return finished

    # Load

    def _load(self, start: Start) -> None:
        self.step = start.step
        folder, config = self.run.folder, self.config
        self.skipped = SkippedSteps(
            folder,
            self.rank,
            self.step,
            start.skipped,
            config.max_skipped_in_a_row,
            start.skipped_in_a_row,
        )
        self.spikes = SpikeGuard(
            config.max_gradient_norm_ratio, config.gradient_norm_window, start.gradient_norms
        )
        backbone = self.run.backbone
        if start.weights is not None:
            load_weights(backbone.model, dict(start.weights), start.source)
        self.objective = make_objective(self.config, backbone, self.run.device, start.objective)
        average = AveragedCopy(backbone)
        if config.compile:
            compile_blocks(backbone.model)
        self.engine = Engine(
            backbone.network, backbone.model, config, self.world_size, self.spikes.refuses
        )
        decay = partial(decay_at, limit=config.ema_decay)
        self.ema = EMA(self.engine.masters, decay, start.ema_updates)
        self.power_averages = start_power_averages(self.engine, config.power_averages, start)
        self.validator = Validator(self.run, self.engine, self.ema, self.objective, average)
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
            self.run.folder,
            self.step,
            self.config.wandb,
            self.run.name,
            yaml.safe_load(self.run.settings) or {},
        )
        logger.info(
            "%s: %s step %d of %d; %s parameters, ZeRO %d, %s, %d process(es) x %d x %d samples",
            self.run.name,
            "going on from" if self.step else "starting at",
            self.step,
            self.config.steps,
            f"{self.engine.num_parameters:,}",
            self.config.zero_stage,
            self.config.precision,
            self.world_size,
            self.accumulation,
            self.config.micro_batch,
        )

    # Step

    def _steps(self) -> bool:
        batches = iter(()) if self.step >= self.config.steps else self.run.batches(self.step)
        last_saved = self.step
        self._trace()
        with self._progress() as bar:
            while self.step < self.config.steps:
                self._traced_step(batches)
                self.step += 1
                self._trace()
                if self._is_due(self.config.log_every) or self.stop_agreed:
                    self._log(bar)
                    self.window = Window(self.run.device)
                self._validate()
                self._take_snapshot()
                is_milestone = self.step in self.config.keep_at
                due = is_milestone or self._is_due(self.config.checkpoint_every)
                if due or self.save_agreed or self.stop_agreed:
                    last_saved = self.step if self._save() else last_saved
                if self.stop_agreed:
                    break
        if last_saved < self.step:
            raise OSError(
                f"{self.saver.folder}: the last checkpoint, of step {self.step}, could not be "
                f"written: {self.saver.problem}; make room, then the same command goes on from the "
                "newest one that is whole"
            )
        return self.step >= self.config.steps

    def _is_due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.config.steps)

    def _traced_step(self, batches: Iterator[TrainingBatch]) -> None:
        """One optimizer step; every ``communication_every``-th tells what communication took."""
        every = self.config.communication_every
        is_due = every > 0 and (self.step + 1) % every == 0
        is_traced = self.profile is not None and self.profile.is_tracing
        if self.rank > 0 or self.world_size == 1 or not is_due or is_traced:
            self._train_step(batches)
            return
        with communication_traced(self.run.device) as share:
            self._train_step(batches)
        self.window.communication_share = share()

    def _train_step(self, batches: Iterator[TrainingBatch]) -> None:
        """One optimizer step: ``accumulation`` micro-batches, update, averages."""
        sums = LossSums(self.run.device)
        learning_rate = self.config.learning_rate_at(self.step)
        flops, num_replaced, num_cut, keys = 0.0, 0, 0, list[str]()
        with self._phase("update"):
            self.objective.begin_step(self.step, lambda: self.engine.gather(self.ema.averages))
        for _ in range(self.accumulation):
            with self._phase("data"):
                batch = next(batches).to(self.run.device)
            assert batch.step == self.step, f"batch of step {batch.step} at step {self.step}"
            with self._phase("text"):
                condition = self.run.backbone.conditioner.given(batch)
            with self._phase("forward"):
                losses = self.objective.training_loss(self.engine.network, batch, condition)
                sums.add(losses.loss_B, losses.timestep_B)
            with self._phase("backward"):
                self.engine.backward(losses.loss_B.mean())
            with self._phase("update"):
                self.engine.step(learning_rate)
            keys += batch.keys
            num_replaced += batch.num_replaced
            num_cut += condition.num_cut if isinstance(condition, TextStates) else 0
            flops += batch_flops(
                self.run.backbone, self.objective, self.config.gamma, batch, condition
            )
        self.epoch = batch.epoch
        if self.engine.was_applied:
            with self._phase("update"):
                for average in (self.ema, *self.power_averages.values()):
                    average.update()
                self.objective.end_step()
        with self._phase("agreement"):
            sums_2T, (flops, *counts) = self._agree(sums.sums_2T, flops, num_replaced, num_cut)
        self.window.num_replaced += int(counts[0])
        self.window.num_cut += int(counts[1])
        self._account(sums_2T, flops, keys)

    def _account(self, sums_2T: Tensor, flops: float, keys: Sequence[str]) -> None:
        """Count the step as applied, or write down that it was skipped."""
        norm = self.engine.gradient_norm
        self.window.steps += 1
        if self.engine.was_applied:
            self.window.add_applied(sums_2T, flops, norm)
            self.spikes.add(norm)
            self.skipped.end_row()
        else:
            self.skipped.add(self.step, keys, norm, self.spikes.limit)

    def _agree(self, sums_2T: Tensor, *numbers: float) -> tuple[Tensor, list[float]]:
        """The sums over ranks; the same message tells all to save or stop if one wishes so."""
        own = [self.saver.is_overdue, self.stop_wanted, *numbers]
        tail = torch.tensor(own, dtype=sums_2T.dtype, device=sums_2T.device)
        message = torch.cat([sums_2T.flatten(), tail])
        dist.all_reduce(message)
        sums, (saves, stops, *totals) = message.cpu().split([sums_2T.numel(), len(own)])
        self.save_agreed, self.stop_agreed = bool(saves > 0), bool(stops > 0)
        return sums.view(2, -1), [float(total) for total in totals]

    @contextmanager
    def _phase(self, phase: str) -> Iterator[None]:
        """One of `metrics.PHASES`: timed, told to the watchdog, shown in a trace."""
        self.watchdog.enter(self.step, phase)
        label = nullcontext() if self.profile is None else self.profile.label(phase)
        with self.window.stopwatch.timed(phase), label:
            yield
        self.watchdog.enter(self.step, f"after {phase}")

    def _trace(self) -> None:
        if self.profile is not None:
            self.profile.at(self.step)

    # Log

    def _log(self, bar: Progress | None) -> None:
        """On rank 0: write a line of metrics and move the progress line on."""
        if self.reporter is None or bar is None:
            return
        measured = self.window.fields(
            self.config.global_batch, self.world_size, peak_tflops(self.config, self.run.device)
        )
        self._warn_of_cut()
        shown = {"loss": "loss", "images_per_second": "images/s", "mfu": "MFU"}
        bar.update(
            self.window.steps,
            {shown[name]: value for name, value in measured.items() if name in shown and value},
        )
        self.reporter.write(
            {
                "step": self.step,
                **measured,
                "learning_rate": self.config.learning_rate_at(self.step - 1),
                "epoch": self.epoch,
                "samples_seen": self.step * self.config.global_batch,
                "skipped": self.skipped.count,
                "gradient_norm_limit": self.spikes.limit,
                "memory_gb": memory_gb(self.run.device),
                "eta_seconds": bar.remaining_seconds,
                **self.objective.state,
            }
        )

    def _warn_of_cut(self) -> None:
        """Once; the metrics go on counting."""
        if self.has_warned_of_cut or not self.window.num_cut:
            return
        self.has_warned_of_cut = True
        logger.warning(
            "%s: until step %d, %d of %d captions are longer than the text encoder reads: their ends "
            "are cut off. Raise t2i.encoders.text.max_tokens; cut_captions in metrics.jsonl counts them",
            *(self.run.name, self.step, self.window.num_cut),
            self.window.steps * self.config.global_batch,
        )

    def _progress(self) -> AbstractContextManager[Progress | None]:
        if self.rank == 0:
            return progress(self.run.name, self.config.steps, "step", initial=self.step)
        return nullcontext()

    def _validate(self) -> None:
        """Measure and sample what is due, if there is anything to measure or to sample."""
        if self.run.validation and self._is_due(self.config.validate_every):
            with self._phase("validation"):
                self.validator.measure(self.step, self.reporter)
        if self.run.samples is not None and self._is_due(self.config.sample_every):
            with self._phase("validation"):
                self.validator.sample(self.step, self.reporter)

    def _take_snapshot(self) -> None:
        """Before the checkpoint of the same step, so that a run goes on with no snapshot left out.

        One that cannot be written is no reason to stop.
        """
        if self.snapshots is not None and self._is_due(self.config.snapshot_every):
            with self._phase("saving"):
                self.snapshots.save(self._state())

    def _save(self) -> bool:
        with self._phase("saving"):
            return self.saver.save(self._state())

    def _state(self) -> TrainingState:
        return TrainingState(
            self.step,
            self.engine.optimizer_steps,
            self.ema.updates,
            self.skipped.count,
            self.objective.state,
            self.spikes.norms,
            max((average.updates for average in self.power_averages.values()), default=0),
            self.skipped.in_a_row,
            list(self.run.data),
        )

    def _request_stop(self, *_: object) -> None:
        self.stop_wanted = True
