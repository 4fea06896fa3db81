"""CMMD: how far two sets of pictures lie apart, by CLIP's embeddings."""

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
Squared maximum mean discrepancy of CLIP ViT-L/14's embeddings at 336 pixels, Gaussian kernel of width
10, times 1,000 (Jayasumana et al., 2024). It supposes no Gaussian features and settles with a few
thousand pictures; of a larger reference 10,000 are taken. The middle square of each picture counts.

  python -m t2i.evaluate cmmd SAMPLES --reference PICTURES --weights openai/clip-vit-large-patch14-336
  python -m t2i.evaluate cmmd SAMPLES --reference PICTURES --random-weights 0     tries the way
"""


class CmmdSettings(Section):
    reference: str = Field("", description="folder of pictures, or an .npz with pictures")
    weights: str = Field(
        "openai/clip-vit-large-patch14-336", description="folder, or name on the hub"
    )
    random_weights: int | None = Field(
        None, description="seed of a tiny random network in its place; its scores mean nothing"
    )
    draws: int = Field(20, ge=0, description="bootstrap draws; 0 = no interval")


class CmmdScorer:
    """Rows of CLIP."""

    rows_name = "clip"

    def __init__(self, settings: CmmdSettings, context: Context) -> None:
        from t2i.encoders.clip import load_clip, random_clip
        from t2i.evaluation.references import Reference

        seed, device = settings.random_weights, context.device
        self.clip = (
            load_clip(settings.weights, device) if seed is None else random_clip(seed, device)
        )
        self.weights = (Weights("CLIP", self.clip.weights_hash, self.clip.is_published),)
        self.draws = settings.draws
        self.reference = Reference(settings.reference, self, context, ("embedding",))

    def rows(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """``embedding`` (B, D) of length 1."""
        return {"embedding": self.clip.embed_pictures([p.pixels_HW3 for p in pictures])}

    def score(self, rows: Mapping[str, Tensor], prompts: Sequence[str] | None) -> Scores:
        from t2i.evaluation.mmd import cmmd
        from t2i.evaluation.set_scores import score_of_set

        if self.reference.rows is None:
            raise ValueError("--reference: statistics do not serve; it needs pictures")
        reference_ND = self.reference.rows["embedding"]
        score = score_of_set(
            "cmmd", lambda some: cmmd(some, reference_ND), rows["embedding"], self.draws, "lower"
        )
        return Scores([score])


METRIC = Metric("cmmd", "maximum mean discrepancy of CLIP", DESCRIPTION, CmmdSettings, CmmdScorer)
