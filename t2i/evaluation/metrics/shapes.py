"""ShapesEval: do pictures of the Shapes world show what their prompts say, and where?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from t2i.config import ASSETS_FOLDER, Section
from t2i.evaluation.metric import Metric, Score, Scores, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.evaluation.context import Context
    from t2i.evaluation.picture_sets import Picture

DESCRIPTION = """
Pictures against the Shapes prompts that they were made from, by an analytic detector, without any
network. Of the objects that a prompt names, the share ...
  color, shape        found by their colour, or by their shape, wherever they are
  color_and_shape     found by both
  shape_given_color   with the right shape, of those found by colour
  color_at_place      with something of their colour at their place
  place               found by colour and shape at their place
  size                of the right size, of those found by colour, shape and place
and of the pictures, the share ...
  count               with as many objects as named
  scene               with all named objects in colour and shape, and nothing else
"-" stands where there is nothing to score: place and size, when no prompt tells them.

  python -m t2i.evaluate shapes outputs/nano/samples/none outputs/nano/samples/sg --ceiling
"""


class ShapesSettings(Section):
    ceiling: bool = Field(
        False,
        description="score the true pictures of the prompts, too, as drawn and after the VAE; "
        "prompts must be detailed captions",
    )
    vae: str = Field(str(ASSETS_FOLDER / "nano" / "vae"), description="for --ceiling")


class ShapesScorer:
    """Counts of each picture, then shares of all."""

    rows_name = "shapes"
    weights: tuple[Weights, ...] = ()

    def __init__(self, settings: ShapesSettings, context: Context) -> None:
        self.settings, self.context = settings, context
        self.truths: dict[tuple[str, ...], dict[str, list[Score]]] = {}

    def rows(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """``counts`` (B, number of `COUNTS`) and ``width`` (B,) in pixels."""
        import torch
        from PIL import Image

        from t2i.evaluation.shapes_eval import COUNTS, count_picture

        counts = [
            count_picture(picture.prompt or "", Image.fromarray(picture.pixels_HW3))
            for picture in pictures
        ]
        return {
            "counts": torch.tensor([[count[name] for name in COUNTS] for count in counts]),
            "width": torch.tensor([picture.pixels_HW3.shape[1] for picture in pictures]),
        }

    def score(self, rows: Mapping[str, Tensor], prompts: Sequence[str] | None) -> Scores:
        assert prompts is not None
        from t2i.evaluation.shapes_eval import COUNTS

        scores = shape_scores(rows["counts"], prompts)
        is_scene = rows["counts"][:, COUNTS.index("scene")].double().tolist()
        per_picture = {"scene": is_scene}
        if not self.settings.ceiling:
            return Scores(scores, per_picture)
        distinct = tuple(dict.fromkeys(prompts))
        if distinct not in self.truths:
            self.truths[distinct] = self._score_truth(distinct, int(rows["width"][0]))
        return Scores(scores, per_picture, truth=self.truths[distinct])

    def _score_truth(self, prompts: tuple[str, ...], size: int) -> dict[str, list[Score]]:
        """The scores of the true pictures of the prompts, each drawn once."""
        import torch

        from t2i.evaluation.shapes_ceiling import true_pictures
        from t2i.evaluation.shapes_eval import COUNTS, count_picture

        found = {}
        pictures = true_pictures(prompts, size, self.settings.vae, self.context.device)
        for name, images in pictures.items():
            counts = [count_picture(*pair) for pair in zip(prompts, images, strict=True)]
            table = torch.tensor([[count[key] for key in COUNTS] for count in counts])
            found[name] = shape_scores(table, prompts)
        return found


def shape_scores(counts_NC: Tensor, prompts: Sequence[str]) -> list[Score]:
    """Shares with 95 % intervals: bootstrap over prompts, in which objects of a picture and pictures
    of a prompt stay together; Wilson's where all are alike and a bootstrap would have no width."""

    from t2i import rng
    from t2i.evaluation.intervals import ratio_draws, share_ends
    from t2i.evaluation.shapes_eval import COUNTS, SHARES, Share

    counts = {name: counts_NC[:, number].numpy() for number, name in enumerate(COUNTS)}
    generator = rng.generator(0, "bootstrap", 0, 0)
    scores = []
    for name, (part, whole) in SHARES.items():
        share = Share(int(counts[part].sum()), int(counts[whole].sum()))
        low, high = share.interval or (None, None)
        if share.num and len(set(prompts)) > 1:
            ratios = ratio_draws(counts[part], counts[whole], generator, prompts)
            low, high = share_ends(ratios, share.num)
        unit = "pictures" if whole == "images" else "objects"
        scores.append(Score(name, share.value, low, high, share.num, unit, "higher", is_share=True))
    return scores


METRIC = Metric(
    name="shapes",
    summary="prompt adherence in the Shapes world",
    description=DESCRIPTION,
    settings=ShapesSettings,
    prepare=ShapesScorer,
    needs_prompts=True,
    main_score="scene",
)
