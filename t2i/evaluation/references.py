"""What a set of pictures is held against: another set, or statistics that somebody else computed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2i.console import get_logger, progress
from t2i.devices import process_state
from t2i.evaluation.adm_files import AdmFile, open_adm_file
from t2i.evaluation.context import Context
from t2i.evaluation.metric import Scorer
from t2i.evaluation.moments import Moments, Statistics, statistics_of
from t2i.evaluation.picture_sets import PictureSet, open_set, read_batches
from t2i.evaluation.scoring import rows_key, rows_of

logger = get_logger("evaluate")
MAX_ROWS = 10_000  # as many pictures as ADM's reference for ImageNet holds


class Reference:
    """A reference; what is made of its pictures is made when first asked for, and remembered.

    Of up to ``max_rows`` pictures all rows are held. Of more, a training set of millions maybe,
    statistics are summed up batch by batch on all processes, and as many pictures as that, evenly
    spread, give the rows.
    """

    def __init__(
        self,
        path: str,
        scorer: Scorer,
        context: Context,
        names: Sequence[str],
        max_rows: int = MAX_ROWS,
    ) -> None:
        """Open it.

        Args:
            names: of the rows that statistics are asked of.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: no path, or neither statistics nor pictures in it.
        """
        if not path:
            raise ValueError("--reference is missing: a folder of pictures, or an .npz of ADM's")
        self.scorer, self.context, self.names, self.max_rows = scorer, context, names, max_rows
        self.label = f"{scorer.rows_name.split()[0]} reference"
        file = open_adm_file(Path(path)) if Path(path).suffix == ".npz" else AdmFile(None, None, 1)
        self.known = {"pool3": file.pooled, "spatial": file.spatial}
        self.pictures = open_set(Path(path)) if file.num_images else None

    @cached_property
    def rows(self) -> dict[str, Tensor] | None:
        """Of its pictures, or of ``max_rows`` of them; None = it has none."""
        if self.pictures is None:
            return None
        num, indices = self.pictures.num, None
        if num > self.max_rows:
            indices = [place * num // self.max_rows for place in range(self.max_rows)]
        return rows_of(self.scorer, self.pictures, self.context, self.label, indices)

    def statistics(self, name: str) -> Statistics | None:
        """Those in the file, else those of its pictures; None = there is neither."""
        if self.known.get(name) is None and self.pictures is not None:
            if self.pictures.num > self.max_rows:
                self.known.update(self._streamed(self.pictures))
            elif self.rows is not None:
                self.known[name] = statistics_of(self.rows[name])
        return self.known.get(name)

    def _streamed(self, pictures: PictureSet) -> dict[str, Statistics]:
        """Statistics of all pictures, each process summing up its share."""
        remembered = None
        if self.context.cache is not None:
            key = rows_key(self.scorer, pictures, self.context.policy)
            remembered = self.context.cache / f"{self.label.replace(' ', '-')}-{key}.npz"
            if remembered.is_file():
                logger.info("%s: statistics are remembered (%s)", self.label, remembered)
                return _read(remembered, self.names)
        moments = self._sum_up(pictures)
        found = {name: moments[name].statistics() for name in self.names}
        if remembered is not None and process_state().is_main_process:
            remembered.parent.mkdir(parents=True, exist_ok=True)
            _write(remembered, found)
        return found

    def _sum_up(self, pictures: PictureSet) -> dict[str, Moments]:
        state, context = process_state(), self.context
        own = range(state.process_index, pictures.num, state.num_processes)
        moments: dict[str, Moments] = {}
        reader = read_batches(
            pictures, context.batch_size, context.policy, own, context.num_threads
        )
        with progress(self.label, len(own), "pictures") as bar:
            for batch in reader:
                with torch.inference_mode():
                    rows = self.scorer.rows(batch)
                for name in self.names:
                    sums = moments.setdefault(name, Moments(rows[name].shape[1], context.device))
                    sums.add(rows[name])
                bar.update(len(batch))
        for name in self.names:
            moments[name].all_reduce()
        return moments


def _write(path: Path, statistics: dict[str, Statistics]) -> None:
    """The file appears whole or not at all."""
    temporary = path.with_suffix(".tmp.npz")
    arrays: dict[str, Any] = {f"{name} mean": own.mean_D for name, own in statistics.items()}
    arrays |= {f"{name} covariance": own.covariance_DD for name, own in statistics.items()}
    np.savez(temporary, **arrays)
    temporary.replace(path)


def _read(path: Path, names: Sequence[str]) -> dict[str, Statistics]:
    with np.load(path) as arrays:
        return {
            name: Statistics(arrays[f"{name} mean"], arrays[f"{name} covariance"]) for name in names
        }
