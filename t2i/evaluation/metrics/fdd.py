"""FDD: the Frechet distance of DINOv2's features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from t2i.config import Section
from t2i.evaluation.metric import Metric, Scores, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.evaluation.context import Context
    from t2i.evaluation.picture_sets import Picture

DESCRIPTION = """
Frechet distance, as FID's, of DINOv2 ViT-L/14's class tokens, which follow people's judgment of
diffusion models better than Inception's features (Stein et al., 2023). Pictures are squeezed to 224 x
224 by Pillow's bicubic filter. Like FID it falls with the number of pictures.

  python -m t2i.evaluate fdd SAMPLES --reference PICTURES --weights facebook/dinov2-large
  python -m t2i.evaluate fdd SAMPLES --reference PICTURES --random-weights 0     tries the way
"""


class FddSettings(Section):
    reference: str = Field("", description="folder of pictures, or an .npz with pictures")
    weights: str = Field("facebook/dinov2-large", description="folder, or name on the hub")
    random_weights: int | None = Field(
        None, description="seed of a tiny random network in its place; its scores mean nothing"
    )
    draws: int = Field(20, ge=0, description="bootstrap draws; 0 = no interval")


class FddScorer:
    """Rows of DINOv2."""

    rows_name = "dinov2"

    def __init__(self, settings: FddSettings, context: Context) -> None:
        from t2i.encoders.dinov2 import load_dinov2, random_dinov2
        from t2i.evaluation.references import Reference

        seed, device = settings.random_weights, context.device
        self.network = (
            load_dinov2(settings.weights, device) if seed is None else random_dinov2(seed, device)
        )
        found = self.network
        self.weights = (Weights("DINOv2", found.weights_hash, found.is_published),)
        self.draws = settings.draws
        self.reference = Reference(settings.reference, self, context, ("class_token",))

    def rows(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """``class_token`` (B, D)."""
        return {"class_token": self.network.embed_pictures([p.pixels_HW3 for p in pictures])}

    def score(self, rows: Mapping[str, Tensor], prompts: Sequence[str] | None) -> Scores:
        from t2i.evaluation.frechet import frechet_distance
        from t2i.evaluation.moments import note_of_few, statistics_of
        from t2i.evaluation.set_scores import score_of_set

        reference = self.reference.statistics("class_token")
        if reference is None:
            raise ValueError("--reference: statistics of Inception do not serve; it needs pictures")
        rows_ND = rows["class_token"]
        score = score_of_set(
            "fdd",
            lambda some_ND: frechet_distance(statistics_of(some_ND), reference),
            rows_ND,
            self.draws,
            "lower",
        )
        return Scores([score], notes=note_of_few(*rows_ND.shape))


METRIC = Metric("fdd", "Frechet distance of DINOv2's features", DESCRIPTION, FddSettings, FddScorer)
