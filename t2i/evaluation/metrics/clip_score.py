"""CLIP score: how well each picture fits its prompt."""

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
The cosine of CLIP's vectors of a picture and of its prompt, at least 0, times 100: the mean over
pictures (Hessel et al., 2021, who multiply by 2.5 and put "A photo depicts" in front; this is what
papers on diffusion print). The model matters: give it beside the number. CLIP reads 77 tokens and is
poor at counting and places; guidance that is too strong raises it.

  python -m t2i.evaluate clip SAMPLES --weights openai/clip-vit-large-patch14
  python -m t2i.evaluate clip SAMPLES --random-weights 0                     tries the way
"""


class ClipSettings(Section):
    weights: str = Field("openai/clip-vit-large-patch14", description="folder, or name on the hub")
    random_weights: int | None = Field(
        None, description="seed of a tiny random network in its place; its scores mean nothing"
    )


class ClipScorer:
    """The cosine of each picture."""

    rows_name = "clip_score"

    def __init__(self, settings: ClipSettings, context: Context) -> None:
        from t2i.encoders.clip import load_clip, random_clip

        seed, device = settings.random_weights, context.device
        self.clip = (
            load_clip(settings.weights, device) if seed is None else random_clip(seed, device)
        )
        self.weights = (Weights("CLIP", self.clip.weights_hash, self.clip.is_published),)

    def rows(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """``cosine`` (B,)."""
        pictures_BD = self.clip.embed_pictures([p.pixels_HW3 for p in pictures])
        texts_BD = self.clip.embed_texts([p.prompt or "" for p in pictures])
        return {"cosine": (pictures_BD * texts_BD).sum(dim=1)}

    def score(self, rows: Mapping[str, Tensor], prompts: Sequence[str] | None) -> Scores:
        from t2i.evaluation.set_scores import score_of_pictures

        return score_of_pictures("clip", 100 * rows["cosine"].clamp(min=0), prompts, "higher")


METRIC = Metric(
    "clip", "agreement of pictures and prompts by CLIP", DESCRIPTION, ClipSettings, ClipScorer, True
)
