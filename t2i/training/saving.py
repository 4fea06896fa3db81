"""Writes checkpoints and snapshots: all processes gather, each writes its share, the first commits."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist

from t2i.console import get_logger
from t2i.training import checkpoint
from t2i.training.averages.ema import EMA
from t2i.training.checkpoint import TrainingState
from t2i.training.engine import MOMENTS, Engine

logger = get_logger("train")


# kind of tensors -> flat partitions, laid out as the masters
Partitions = Mapping[str, Sequence[Tensor]]


def training_partitions(engine: Engine, averages: Mapping[str, EMA]) -> Partitions:
    """What a checkpoint holds: weights, each average under its kind, Adam's moments."""
    return {
        "weights": engine.masters,
        **{kind: average.averages for kind, average in averages.items()},
        **{kind: engine.moments(kind) for kind in MOMENTS},
    }


class Saver:
    """Saves partitions of an engine by name; `save` is called by all processes together.

    Attributes:
        problem: why the last `save` wrote nothing; None when it did.
    """

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        partitions: Callable[[], Partitions],
        settings: str,
        keep: int | None,
        keep_at: Sequence[int] = (),
        minutes: float | None = None,
        on_checkpoint: Callable[[Path], None] | None = None,
        dtype: torch.dtype = torch.float32,
        what: str = "checkpoint",
    ) -> None:
        """``folder`` receives ``step-N`` folders, of which the newest ``keep`` (None: all) stay, and
        those of the steps ``keep_at``.

        ``partitions`` gives what to save, in ``dtype``. ``settings`` (YAML) is stored beside each.
        ``minutes`` after the last save the next one `is_overdue`. ``on_checkpoint`` is called by the
        first process with each new folder. ``what`` it is called in a message.
        """
        self.folder, self.engine, self.partitions = folder, engine, partitions
        self.settings, self.keep, self.keep_at, self.minutes = settings, keep, keep_at, minutes
        self.dtype, self.what = dtype, what
        self.on_checkpoint = on_checkpoint
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.problem: str | None = None
        self._last_save = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        if self.rank == 0:
            checkpoint.remove_leftovers(folder)

    @property
    def is_overdue(self) -> bool:
        """Whether the last save is ``minutes`` ago, by the first process's clock alone."""
        if self.rank > 0 or self.minutes is None:
            return False
        return time.monotonic() - self._last_save >= 60 * self.minutes

    def save(self, state: TrainingState) -> bool:
        """Write a folder of this step; False, with a logged reason, when the disk refused."""
        temporary = checkpoint.temporary_folder(self.folder, state.step)
        self.problem = (
            self._agree_on_problem(lambda: self._make_folder(temporary))
            or self._agree_on_problem(lambda: self._write_tensors(temporary))
            or self._agree_on_problem(lambda: self._commit(temporary, state))
        )
        if self.rank == 0:
            if self.problem is not None:
                line = "%s of step %d not written: %s"
                logger.error(line, self.what, state.step, self.problem)
                shutil.rmtree(temporary, ignore_errors=True)
            elif self.on_checkpoint is not None:
                self.on_checkpoint(temporary.with_suffix(""))
        dist.barrier()
        self._last_save = time.monotonic()
        return self.problem is None

    def _make_folder(self, temporary: Path) -> None:
        if self.rank == 0:
            temporary.mkdir(parents=True, exist_ok=True)

    def _write_tensors(self, temporary: Path) -> None:
        """Every rank joins in gathering each kind of tensor; one rank keeps and writes it.

        Ranks write at the same time, after all is gathered. One that has several kinds to write holds
        one of them in memory at a time; an error on the way must not keep it from gathering.
        """
        held: tuple[str, dict[str, Tensor]] | None = None
        problem: OSError | None = None
        for number, (kind, flats) in enumerate(self.partitions().items()):
            is_mine = number % self.world_size == self.rank
            if is_mine and held is not None:
                problem = problem or _write(temporary, *held)
                held = None
            whole = self.engine.gather(flats)
            gathered = {n: t.to("cpu", self.dtype) for n, t in whole if is_mine}
            if is_mine:
                held = kind, gathered
        if held is not None:
            problem = problem or _write(temporary, *held)
        if problem is not None:
            raise problem

    def _commit(self, temporary: Path, state: TrainingState) -> None:
        if self.rank == 0:
            checkpoint.commit(temporary, state, self.settings, self.keep, self.keep_at)

    def _agree_on_problem(self, action: Callable[[], None]) -> str | None:
        """Run ``action`` on every rank; the first OS error of any rank, known to all, or None."""
        problem = None
        try:
            action()
        except OSError as error:
            problem = str(error)
        problems: list[str | None] = [None] * self.world_size
        dist.all_gather_object(problems, problem)
        return next((text for text in problems if text is not None), None)


def _write(temporary: Path, kind: str, tensors: dict[str, Tensor]) -> OSError | None:
    try:
        checkpoint.write_tensors(temporary, kind, tensors)
    except OSError as error:
        return error
    return None
