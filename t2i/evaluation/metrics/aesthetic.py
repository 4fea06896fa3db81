"""Aesthetic score: how much people would like each picture, by LAION's predictor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from t2i.config import Section
from t2i.evaluation.metric import Metric, Scores, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.evaluation.context import Context
    from t2i.evaluation.picture_sets import Picture

DESCRIPTION = """
LAION's aesthetic predictor, version 2, on CLIP ViT-L/14: from about 1 to 10, the mean over pictures.
The same predictor gives COYO's aesthetic_score_laion_v2, by which training pictures are filtered.

  python -m t2i.evaluate aesthetic SAMPLES --head sac+logos+ava1-l14-linearMSE.pth
  python -m t2i.evaluate aesthetic SAMPLES --random-weights 0               tries the way
"""


class AestheticSettings(Section):
    head: str | None = Field(None, description="file of the predictor's head")
    clip: str = Field("openai/clip-vit-large-patch14", description="folder, or name on the hub")
    random_weights: int | None = Field(
        None, description="seed of tiny random networks in their place; their scores mean nothing"
    )


class AestheticScorer:
    """The score of each picture."""

    rows_name = "aesthetic"

    def __init__(self, settings: AestheticSettings, context: Context) -> None:
        from t2i.encoders.aesthetics import (
            PUBLISHED_NAME,
            PUBLISHED_URL,
            load_aesthetic_head,
            random_aesthetic_head,
        )
        from t2i.encoders.clip import load_clip, random_clip

        seed, device = settings.random_weights, context.device
        if seed is not None:
            self.clip = random_clip(seed, device)
            self.head = random_aesthetic_head(seed, self.clip.model.config.projection_dim)
        elif settings.head is None:
            raise ValueError(
                f"--head is missing: {PUBLISHED_NAME} from {PUBLISHED_URL}; --random-weights 0 "
                "tries the way without"
            )
        else:
            self.clip = load_clip(settings.clip, device)
            self.head = load_aesthetic_head(Path(settings.head))
        self.weights = (
            Weights("CLIP", self.clip.weights_hash, self.clip.is_published),
            Weights("the aesthetic head", self.head.weights_hash, seed is None),
        )

    def rows(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """``aesthetic`` (B,)."""
        return {"aesthetic": self.head(self.clip.embed_pictures([p.pixels_HW3 for p in pictures]))}

    def score(self, rows: Mapping[str, Tensor], prompts: Sequence[str] | None) -> Scores:
        from t2i.evaluation.set_scores import score_of_pictures

        return score_of_pictures("aesthetic", rows["aesthetic"], prompts, "higher")


METRIC = Metric(
    "aesthetic", "LAION's aesthetic score", DESCRIPTION, AestheticSettings, AestheticScorer
)
