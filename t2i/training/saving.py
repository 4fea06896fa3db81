"""Writes a run's checkpoints: all processes gather, each writes its share, the first one commits."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from torch import distributed as dist

from t2i.console import get_logger
from t2i.training import checkpoint
from t2i.training.checkpoint import TrainingState
from t2i.training.ema import EMA
from t2i.training.engine import MOMENTS, Engine

logger = get_logger("train")


class Saver:
    """Saves the state of an engine and its average; `save` is called by all processes together.

    Attributes:
        problem: why the last `save` wrote nothing; None when it did.
    """

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        ema: EMA,
        settings: str,
        keep: int,
        minutes: float | None = None,
        on_checkpoint: Callable[[Path], None] | None = None,
    ) -> None:
        """``folder`` receives ``step-N`` folders, of which the newest ``keep`` stay.

        ``settings`` (YAML) is stored beside each. ``minutes`` after the last save the next one
        `is_overdue`. ``on_checkpoint`` is called by the first process with each new folder.
        """
        self.folder, self.engine, self.ema = folder, engine, ema
        self.settings, self.keep, self.minutes = settings, keep, minutes
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
        """Write a checkpoint; False, with a logged reason, when the disk refused."""
        temporary = checkpoint.temporary_folder(self.folder, state.step)
        self.problem = (
            self._agree_on_problem(lambda: self._make_folder(temporary))
            or self._agree_on_problem(lambda: self._write_tensors(temporary))
            or self._agree_on_problem(lambda: self._commit(temporary, state))
        )
        if self.rank == 0:
            if self.problem is not None:
                logger.error("checkpoint of step %d not written: %s", state.step, self.problem)
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
        """Every rank joins in gathering each kind of tensor; one rank keeps and writes it."""
        partitions = {
            "weights": self.engine.masters,
            "ema": self.ema.averages,
            **{kind: self.engine.moments(kind) for kind in MOMENTS},
        }
        assert set(partitions) == set(checkpoint.TENSOR_KINDS)
        mine: dict[str, dict[str, Tensor]] = {}
        for number, (kind, flats) in enumerate(partitions.items()):
            is_mine = number % self.world_size == self.rank
            gathered = {n: t.cpu() for n, t in self.engine.gather(flats) if is_mine}
            if is_mine:
                mine[kind] = gathered
        for kind, tensors in mine.items():
            checkpoint.write_tensors(temporary, kind, tensors)

    def _commit(self, temporary: Path, state: TrainingState) -> None:
        if self.rank == 0:
            checkpoint.commit(temporary, state, self.settings, self.keep)

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
