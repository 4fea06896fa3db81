"""Writes a run's checkpoints: all processes gather, each writes its share, the first one commits."""

from __future__ import annotations

import shutil
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
    """Saves the state of an engine and its average; `save` is called by all processes together."""

    def __init__(self, folder: Path, engine: Engine, ema: EMA, settings: str, keep: int) -> None:
        """``folder`` receives ``step-N`` folders, of which the newest ``keep`` stay.

        ``settings`` (YAML) is stored beside each.
        """
        self.folder, self.engine, self.ema = folder, engine, ema
        self.settings, self.keep = settings, keep
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        folder.mkdir(parents=True, exist_ok=True)
        if self.rank == 0:
            checkpoint.remove_leftovers(folder)

    def save(self, state: TrainingState) -> bool:
        """Write a checkpoint; False, with a logged reason, when the disk refused."""
        temporary = checkpoint.temporary_folder(self.folder, state.step)
        if self.rank == 0:
            temporary.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        problem = self._agree_on_problem(lambda: self._write_tensors(temporary))
        if problem is None:
            problem = self._agree_on_problem(lambda: self._commit(temporary, state))
        if problem is not None and self.rank == 0:
            logger.error("checkpoint of step %d not written: %s", state.step, problem)
            shutil.rmtree(temporary, ignore_errors=True)
        dist.barrier()
        return problem is None

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
