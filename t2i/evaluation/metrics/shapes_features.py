"""Fidelity and diversity of Shapes pictures, by the features of a small classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from t2i.config import ASSETS_FOLDER, Section
from t2i.evaluation.metric import Metric, Scores, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.evaluation.context import Context
    from t2i.evaluation.picture_sets import Picture

DESCRIPTION = """
Features of a classifier of Shapes scenes (shape, colour, size by place; background), which is shipped
with its accuracy: what DINOv2 is for photographs. Scores:

  frechet     Frechet distance to the reference's features, as FID; compare sets of one size
  precision   share of samples within the reference's manifold, k = 3 neighbours
  recall      share of the reference within that of the samples
  diversity   mean distance of a picture to the others of its prompt, by the reference's own mean
              distance of two pictures: 0 = all alike; needs several pictures a prompt

  python -m t2i.evaluate shapes_features SAMPLES --reference PICTURES
"""


class ShapesFeaturesSettings(Section):
    reference: str = Field("", description="folder of pictures, or an .npz with pictures")
    weights: str = Field(
        str(ASSETS_FOLDER / "nano" / "classifier"), description="folder of the classifier"
    )
    draws: int = Field(100, ge=0, description="bootstrap draws of frechet; 0 = no interval")


class ShapesFeaturesScorer:
    """Rows of the classifier."""

    rows_name = "shapes_features"

    def __init__(self, settings: ShapesFeaturesSettings, context: Context) -> None:
        from t2i.encoders.shapes_features import load_shapes_features
        from t2i.evaluation.references import Reference

        self.network = load_shapes_features(Path(settings.weights), context.device)
        self.weights = (Weights("ShapesClassifier", self.network.weights_hash, is_published=False),)
        self.draws = settings.draws
        self.reference = Reference(settings.reference, self, context, ("features",))

    def rows(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """``features`` (B, D)."""
        return {"features": self.network.embed_pictures([p.pixels_HW3 for p in pictures])}

    def score(self, rows: Mapping[str, Tensor], prompts: Sequence[str] | None) -> Scores:
        from t2i.evaluation.diversity import diversity_of_prompts, mean_distance
        from t2i.evaluation.frechet import frechet_distance
        from t2i.evaluation.metric import Score
        from t2i.evaluation.moments import note_of_few, statistics_of
        from t2i.evaluation.precision_recall import precision_recall
        from t2i.evaluation.set_scores import score_of_pictures, score_of_set

        known = self.reference.statistics("features")
        if known is None or self.reference.rows is None:
            raise ValueError("--reference: statistics do not serve; it needs pictures")
        rows_ND, reference_MD = rows["features"], self.reference.rows["features"]
        frechet = score_of_set(
            "frechet",
            lambda some_ND: frechet_distance(statistics_of(some_ND), known),
            rows_ND,
            self.draws,
            "lower",
        )
        found = precision_recall(reference_MD, rows_ND)
        precise = score_of_pictures("precision", found.is_precise_M, prompts, "higher")
        num = len(reference_MD)
        recall = Score("recall", found.recall, None, None, num, "pictures", "higher", is_share=True)
        scores, per_picture = [frechet, *precise.scores, recall], dict(precise.per_picture)
        if prompts is not None and len(set(prompts)) < len(prompts):
            unit = mean_distance(reference_MD)
            own = score_of_pictures(
                "diversity", diversity_of_prompts(rows_ND, prompts) / unit, prompts, "higher"
            )
            scores, per_picture = [*scores, *own.scores], {**per_picture, **own.per_picture}
        return Scores(scores, per_picture, notes=note_of_few(*rows_ND.shape))


METRIC = Metric(
    "shapes_features",
    "fidelity and diversity of Shapes pictures",
    DESCRIPTION,
    ShapesFeaturesSettings,
    ShapesFeaturesScorer,
)
