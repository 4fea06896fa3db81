"""ADM's suite: FID, sFID, Inception Score, precision and recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from t2i.config import Section
from t2i.evaluation.metric import Metric, Score, Scores, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.evaluation.context import Context
    from t2i.evaluation.moments import Statistics
    from t2i.evaluation.picture_sets import Picture

DESCRIPTION = """
Against a reference, by the definitions of ADM's evaluator:
  fid         Frechet distance of Inception's pooled features
  sfid        the same of 7 channels of its Mixed_6d, which tell where things are
  inception_score   how sure Inception is of each picture, and how varied its answers are
  precision   share of pictures within the reference's manifold (3 nearest neighbours)
  recall      share of the reference within the pictures' manifold
Papers take 50,000 pictures and ADM's VIRTUAL_imagenet256_labeled.npz; FID falls with the number of
pictures, so compare at equal numbers. The intervals are bootstraps over pictures.

The reference is one of ADM's .npz files, or a folder of pictures. Statistics alone (mu, sigma) give
FID and sFID; precision and recall need pictures. Weights: pt_inception-2015-12-05-6726825d.pth,
published by pytorch-fid. --random-weights tries the way without them.

  python -m t2i.evaluate adm SAMPLES --reference VIRTUAL_imagenet256_labeled.npz --weights FILE
  python -m t2i.evaluate adm outputs/nano/samples/sg --reference outputs/nano/samples/none --random-weights 0
"""


POOLED_DIMENSIONS = 2048


class AdmSettings(Section):
    reference: str = Field(default="", description="an .npz of ADM's, or a folder of pictures")
    weights: str | None = Field(default=None, description="file with Inception's weights")
    random_weights: int | None = Field(
        default=None,
        description="seed of random weights, in place of a file; their scores mean nothing",
    )
    other_weights: bool = Field(
        default=False, description="take a file that is not the published one"
    )
    reference_rows: int = Field(
        default=10_000,
        ge=4,
        description="pictures of a larger reference that precision and recall are taken of",
    )
    draws: int = Field(
        default=20, ge=0, description="bootstrap draws for the Frechet distances; 0 = none"
    )


class InceptionRows:
    """Rows of Inception: pool3, spatial and logits, float32."""

    rows_name = "inception"

    def __init__(self, settings: AdmSettings, context: Context) -> None:
        from t2i.evaluation.inception import load_inception, random_inception

        if settings.random_weights is not None:
            network = random_inception(settings.random_weights)
        elif settings.weights is not None:
            network = load_inception(Path(settings.weights), "cpu", settings.other_weights)
        else:
            from t2i.evaluation.inception import PUBLISHED_NAME, PUBLISHED_SHA256, PUBLISHED_URL

            raise ValueError(
                f"--weights is missing: {PUBLISHED_NAME} (SHA-256 {PUBLISHED_SHA256}) from "
                f"{PUBLISHED_URL}; --random-weights 0 tries the way without"
            )
        self.network = network.to(context.device)
        self.weights = (Weights("Inception", network.weights_hash, network.is_comparable),)

    def rows(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """``pool3`` (B, 2048), ``spatial`` (B, 2023), ``logits`` (B, 1008)."""
        import torch

        from t2i.evaluation.inception import INPUT_SIZE, resize_bilinear_tf1

        device = self.network.fc.weight.device
        resized = [
            resize_bilinear_tf1(
                torch.tensor(picture.pixels_HW3).permute(2, 0, 1)[None].to(device).float(),
                INPUT_SIZE,
            )
            for picture in pictures
        ]
        # TF32 keeps 10 bits, and FID sees it.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            features = self.network(torch.cat(resized))
        return {
            "pool3": features.pool3.cpu(),
            "spatial": features.spatial.cpu(),
            "logits": features.logits.cpu(),
        }


class AdmScorer(InceptionRows):
    """Rows of Inception, held against those of the reference."""

    def __init__(self, settings: AdmSettings, context: Context) -> None:
        from t2i.evaluation.references import Reference

        super().__init__(settings, context)
        self.settings, self.context = settings, context
        self.reference = Reference(
            settings.reference, self, context, ("pool3", "spatial"), settings.reference_rows
        )

    def score(self, rows: Mapping[str, Tensor], prompts: Sequence[str] | None) -> Scores:
        scores = [
            self._frechet("fid", rows["pool3"], self.reference.statistics("pool3")),
            self._frechet("sfid", rows["spatial"], self.reference.statistics("spatial")),
            self._inception_score(rows["logits"]),
            *self._precision_and_recall(rows["pool3"]),
        ]
        return Scores([score for score in scores if score], notes=self._notes(len(rows["pool3"])))

    def _notes(self, num: int) -> list[str]:
        from t2i.evaluation.moments import note_of_few

        notes = note_of_few(num, POOLED_DIMENSIONS)
        if self.reference.statistics("spatial") is None:
            notes.append("no sFID: the reference has neither its statistics nor pictures")
        if self.reference.rows is None:
            notes.append("no precision and recall: the reference has no pictures")
        return notes

    def _frechet(self, name: str, rows_ND: Tensor, reference: Statistics | None) -> Score | None:
        from t2i.evaluation.frechet import frechet_distance
        from t2i.evaluation.moments import statistics_of
        from t2i.evaluation.set_scores import score_of_set

        if reference is None:
            return None
        return score_of_set(
            name,
            lambda some_ND: frechet_distance(statistics_of(some_ND), reference),
            rows_ND,
            self.settings.draws,
            better="lower",
        )

    def _inception_score(self, logits_NC: Tensor) -> Score:
        from t2i import rng
        from t2i.evaluation.inception_score import inception_score
        from t2i.evaluation.set_scores import score_of_set

        def score(some_NC: Tensor) -> float:
            return inception_score(some_NC, rng.generator(0, "inception_score", 0, 0)).mean

        return score_of_set("inception_score", score, logits_NC, self.settings.draws, "higher")

    def _precision_and_recall(self, pool3_MD: Tensor) -> list[Score]:
        from t2i import rng
        from t2i.evaluation.intervals import mean_interval
        from t2i.evaluation.precision_recall import precision_recall

        if self.reference.rows is None:
            return []
        device = self.context.device
        found = precision_recall(self.reference.rows["pool3"].to(device), pool3_MD.to(device))
        scores = []
        for name, is_within in (("precision", found.is_precise_M), ("recall", found.is_covered_N)):
            interval = mean_interval(is_within.cpu().numpy(), rng.generator(0, "bootstrap", 0, 0))
            ends = interval.low, interval.high
            scores.append(Score(name, interval.value, *ends, interval.num, "pictures", "higher"))
        return scores


METRIC = Metric(
    name="adm",
    summary="FID, sFID, Inception Score, precision and recall",
    description=DESCRIPTION,
    settings=AdmSettings,
    prepare=AdmScorer,
)
