"""LPIPS diversity: among pictures of one prompt, or between two methods on the same seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from t2i.config import Section
from t2i.evaluation.metric import Metric, Scores, Weights

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from t2i.evaluation.context import Context
    from t2i.evaluation.picture_sets import Picture

DESCRIPTION = """
How different pictures look (LPIPS 0.1 on VGG-16), as in Sparse Guidance's Figure 7:
  lpips_diversity   the mean over all pairs of pictures of one prompt, then over prompts: guidance
                    that makes all pictures of a prompt alike lowers it
  lpips_change      with --against: the mean distance to the picture of the same prompt and seed in
                    another set, such as the unguided ones
All pictures must be of one size. Weights: vgg16-397923af.pth of torchvision, and the package lpips'
linear heads (lpips/weights/v0.1/vgg.pth).

  python -m t2i.evaluate lpips SAMPLES --trunk vgg16-397923af.pth --heads vgg.pth
  python -m t2i.evaluate lpips outputs/nano/samples/sg --against outputs/nano/samples/none --random-weights 0
"""
PAIRS_AT_A_TIME = 16


class LpipsSettings(Section):
    against: str | None = Field(None, description="another set of the same prompts and seeds")
    trunk: str | None = Field(None, description="file with torchvision's VGG-16")
    heads: str | None = Field(None, description="file with the linear heads")
    random_weights: int | None = Field(
        None, description="seed of random weights in their place; their scores mean nothing"
    )


class LpipsScorer:
    """Pixels of each picture, or its distance to another."""

    def __init__(self, settings: LpipsSettings, context: Context) -> None:
        from t2i.evaluation.lpips import HEADS_NAME, TRUNK_NAME, TRUNK_URL, load_lpips, random_lpips
        from t2i.evaluation.picture_sets import open_set
        from t2i.evaluation.scoring import pictures_hash

        if settings.random_weights is not None:
            network = random_lpips(settings.random_weights)
        elif settings.trunk is None or settings.heads is None:
            raise ValueError(
                f"--trunk ({TRUNK_NAME} from {TRUNK_URL}) and --heads ({HEADS_NAME}) are needed; "
                "--random-weights 0 tries the way without"
            )
        else:
            network = load_lpips(Path(settings.trunk), Path(settings.heads))
        self.network, self.context = network.to(context.device), context
        self.weights = (Weights("LPIPS", network.weights_hash, network.is_published),)
        self.other = open_set(Path(settings.against)) if settings.against else None
        self.rows_name = f"lpips {pictures_hash(self.other)}" if self.other else "pixels"

    def rows(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """``pixels`` (B, H, W, 3) uint8, or ``distance`` (B,) to the other set's."""
        import torch

        from t2i.evaluation.picture_sets import read_batches

        own = [picture.pixels_HW3 for picture in pictures]
        if self.other is None:
            return {"pixels": torch.stack([torch.tensor(pixels_HW3) for pixels_HW3 in own])}
        indices = [picture.index for picture in pictures]
        if indices[-1] >= self.other.num:
            raise ValueError(f"{self.other.path} has {self.other.num} pictures, and so fewer")
        reader = read_batches(self.other, len(own), "refuse", indices, self.context.num_threads)
        (others,) = reader
        for picture, other in zip(pictures, others, strict=True):
            if picture.prompt != other.prompt:
                raise ValueError(f"{picture.name} and {other.name} are of different prompts")
        return {"distance": self._distances(own, [other.pixels_HW3 for other in others])}

    def score(self, rows: Mapping[str, Tensor], prompts: Sequence[str] | None) -> Scores:
        import torch

        from t2i.evaluation.set_scores import score_of_pictures

        if self.other is not None:
            return score_of_pictures("lpips_change", rows["distance"], prompts, "higher")
        if prompts is None:
            raise ValueError("without prompts there is no diversity of a prompt: give --against")
        pixels = rows["pixels"].numpy()
        of_prompt: dict[str, list[int]] = {}
        for number, prompt in enumerate(prompts):
            of_prompt.setdefault(prompt, []).append(number)
        means, scored = [], []
        for prompt, numbers in of_prompt.items():
            if len(numbers) < 2:
                continue
            distances = [
                self._distances([pixels[i] for i, _ in some], [pixels[j] for _, j in some])
                for some in _chunks(list(combinations(numbers, 2)))
            ]
            means.append(torch.cat(distances).mean())
            scored.append(prompt)
        if not means:
            raise ValueError(
                "every prompt has one picture: sample with --images-per-prompt, or give --against"
            )
        scores = score_of_pictures("lpips_diversity", torch.stack(means), scored, "higher")
        return Scores(scores.scores)  # a number is of a prompt here, not of a picture

    def _distances(self, one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> Tensor:
        import torch

        def batch(pictures: Sequence[np.ndarray]) -> Tensor:
            pixels_BHW3 = torch.stack([torch.tensor(pixels) for pixels in pictures])
            pixels_B3HW = pixels_BHW3.permute(0, 3, 1, 2).to(self.context.device)
            return pixels_B3HW.float() / 127.5 - 1

        if {pixels.shape for pixels in one} != {pixels.shape for pixels in other}:
            raise ValueError("pictures of different sizes cannot be compared")
        with torch.inference_mode():
            return self.network(batch(one), batch(other)).cpu()


def _chunks(pairs: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(pairs), PAIRS_AT_A_TIME):
        yield pairs[start : start + PAIRS_AT_A_TIME]


METRIC = Metric("lpips", "diversity of pictures", DESCRIPTION, LpipsSettings, LpipsScorer)
