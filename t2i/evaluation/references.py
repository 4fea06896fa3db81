"""What a set of pictures is held against: another set, or statistics that somebody else computed."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from torch import Tensor

from t2i.evaluation.adm_files import AdmFile, open_adm_file
from t2i.evaluation.metric import Scorer
from t2i.evaluation.moments import Statistics, statistics_of
from t2i.evaluation.picture_sets import open_set
from t2i.evaluation.scoring import Context, rows_of


class Reference:
    """A reference; rows are made when first asked for, and remembered."""

    def __init__(self, path: str, scorer: Scorer, context: Context) -> None:
        """Open it.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: no path, or neither statistics nor pictures in it.
        """
        if not path:
            raise ValueError("--reference is missing: a folder of pictures, or an .npz of ADM's")
        self.scorer, self.context = scorer, context
        file = open_adm_file(Path(path)) if Path(path).suffix == ".npz" else AdmFile(None, None, 1)
        self.known = {"pool3": file.pooled, "spatial": file.spatial}
        self.pictures = open_set(Path(path)) if file.num_images else None

    @cached_property
    def rows(self) -> dict[str, Tensor] | None:
        """Of its pictures; None = it has none."""
        if self.pictures is None:
            return None
        label = f"{self.scorer.rows_name} reference"
        return rows_of(self.scorer, self.pictures, self.context, label)

    def statistics(self, name: str) -> Statistics | None:
        """Those in the file, else those of its rows; None = there is neither."""
        if self.known.get(name) is None and self.rows is not None:
            self.known[name] = statistics_of(self.rows[name])
        return self.known.get(name)
