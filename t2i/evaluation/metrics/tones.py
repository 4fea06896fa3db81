"""Saturation and contrast: what strong guidance is known to exaggerate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from t2i.config import Section
from t2i.evaluation.metric import Metric, Score, Scores

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.evaluation.context import Context
    from t2i.evaluation.picture_sets import Picture

DESCRIPTION = """
Of each picture the mean saturation of its pixels (HSV), and its contrast: the standard deviation of
luminance (Rec. 601), both in [0, 1]. With a reference, also what that has: guidance that is too
strong lies above it. Neither more nor less is better by itself.

  python -m t2i.evaluate tones SAMPLES --reference PICTURES
"""
LUMINANCE = (0.299, 0.587, 0.114)
NAMES = ("saturation", "contrast")


class TonesSettings(Section):
    reference: str | None = Field(None, description="folder of pictures, or an .npz with pictures")


class TonesScorer:
    """Two numbers of each picture."""

    rows_name = "tones"
    weights = ()

    def __init__(self, settings: TonesSettings, context: Context) -> None:
        from t2i.evaluation.references import Reference

        path = settings.reference
        self.reference = None if path is None else Reference(path, self, context, ())

    def rows(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """``saturation`` and ``contrast``, (B,) each."""
        import numpy as np
        import torch

        found: dict[str, list[float]] = {name: [] for name in NAMES}
        for picture in pictures:
            pixels_HW3 = picture.pixels_HW3.astype(np.float64) / 255
            largest, smallest = pixels_HW3.max(axis=-1), pixels_HW3.min(axis=-1)
            saturation = (largest - smallest) / np.where(largest > 0, largest, 1.0)
            found["saturation"].append(float(saturation.mean()))
            found["contrast"].append(float((pixels_HW3 @ np.array(LUMINANCE)).std()))
        return {name: torch.tensor(values) for name, values in found.items()}

    def score(self, rows: Mapping[str, Tensor], prompts: Sequence[str] | None) -> Scores:
        scores, per_picture = self._means(rows, prompts)
        truth: dict[str, list[Score]] = {}
        if self.reference is not None:
            known = self.reference.rows
            if known is None:
                raise ValueError("--reference: statistics do not serve; it needs pictures")
            truth = {"reference": self._means(known, None)[0]}
        return Scores(scores, per_picture, truth=truth)

    def _means(
        self, rows: Mapping[str, Tensor], prompts: Sequence[str] | None
    ) -> tuple[list[Score], dict[str, Sequence[float]]]:
        from t2i.evaluation.set_scores import score_of_pictures

        parts = [score_of_pictures(name, rows[name], prompts, None) for name in NAMES]
        scores = [score for part in parts for score in part.scores]
        return scores, {name: values for part in parts for name, values in part.per_picture.items()}


METRIC = Metric(
    "tones", "saturation and contrast of pictures", DESCRIPTION, TonesSettings, TonesScorer
)
