"""Scores of pictures against the Shapes prompts that they were made from, without any model.

The detector sees objects in a picture, the prompt names some, and each score pairs them as well as
it can: an object seen stands for one named at most. Of the objects named,

    color, shape        are found by their colour, or by their shape, wherever they are
    color_and_shape     are found by both
    shape_given_color   found by their colour also have their shape
    color_at_place      something of their colour is at their place, where a place is told
    place               are found by colour, shape and place, where a place is told
    size                found by colour and shape (and place, where it is told) also have their
                        size, where a size is told

and of the pictures,

    count               hold as many objects as are named
    scene               hold all named objects in colour and shape, and nothing else

A stricter score is never above a looser one over the same things.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

from t2i.evaluation.intervals import wilson_ends
from t2i.shapes import detect, parse_caption


@dataclass(frozen=True)
class Share:
    """How many of ``num`` are right; of nothing (``num = 0``) there is no share."""

    num_right: int
    num: int

    @property
    def value(self) -> float | None:
        """In [0, 1]; None of nothing."""
        return self.num_right / self.num if self.num else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval, within [0, 1]; None of nothing.

        It takes the trials as independent, which objects of one picture are not quite.
        """
        return wilson_ends(self.num_right, self.num) if self.num else None


@dataclass(frozen=True)
class ShapesScores:
    """Shares of the objects named or of the pictures, as the module says."""

    color: Share
    shape: Share
    color_and_shape: Share
    shape_given_color: Share
    color_at_place: Share
    place: Share
    size: Share
    count: Share
    scene: Share
    num_objects: int
    num_images: int


# Score -> what it counts, of what.
SHARES = {
    "color": ("color", "objects"),
    "shape": ("shape", "objects"),
    "color_and_shape": ("color_and_shape", "objects"),
    # The best pairing by colour and shape always extends to a best one by colour alone.
    "shape_given_color": ("color_and_shape", "color"),
    "color_at_place": ("color_at_place", "placed"),
    "place": ("place", "placed"),
    "size": ("size", "found_of_size"),
    "count": ("count", "images"),
    "scene": ("scene", "images"),
}
SCORES = tuple(SHARES)
COUNTS = tuple(dict.fromkeys(count for pair in SHARES.values() for count in pair))


def score_images(prompts: Sequence[str], images: Iterable[Image.Image]) -> ShapesScores:
    """Compare pictures with their prompts, pair by pair; ``images`` may be read one by one.

    Raises:
        ValueError: a prompt names no object of the Shapes world, or there are no pictures.
    """
    if not prompts:
        raise ValueError("there are no pictures to score")
    sums: Counter[str] = Counter()
    for prompt, image in zip(prompts, images, strict=True):
        sums.update(count_picture(prompt, image))
    return ShapesScores(
        **{name: Share(sums[part], sums[whole]) for name, (part, whole) in SHARES.items()},
        num_objects=sums["objects"],
        num_images=sums["images"],
    )


def count_picture(prompt: str, image: Image.Image) -> dict[str, int]:
    """What one picture adds to the parts and wholes of `SHARES`, by `COUNTS`.

    Raises:
        ValueError: the prompt names no object of the Shapes world.
    """
    named, seen = parse_caption(prompt), detect(image)
    if not named:
        raise ValueError(
            f"the prompt {prompt!r} names no object of the Shapes world, e.g. 'a red circle'"
        )
    color_NS, shape_NS, place_NS, size_NS = (
        np.array([[getattr(n, trait) == getattr(s, trait) for s in seen] for n in named], bool)
        for trait in ("color", "shape", "place", "size")
    )
    placed_N1 = np.array([[item.place != ""] for item in named])
    sized_N1 = np.array([[item.size != ""] for item in named])
    both_NS = color_NS & shape_NS
    found_of_size, size = _num_paired(both_NS & (place_NS | ~placed_N1) & sized_N1, size_NS)
    color_and_shape, _ = _num_paired(both_NS)
    return {
        "objects": len(named),
        "placed": int(placed_N1.sum()),
        "color": _num_paired(color_NS)[0],
        "shape": _num_paired(shape_NS)[0],
        "color_and_shape": color_and_shape,
        "color_at_place": _num_paired(color_NS & place_NS)[0],
        "place": _num_paired(both_NS & place_NS)[0],
        "found_of_size": found_of_size,
        "size": size,
        "images": 1,
        "count": int(len(named) == len(seen)),
        "scene": int(color_and_shape == len(named) == len(seen)),
    }


def _num_paired(fits_NS: np.ndarray, better_NS: np.ndarray | None = None) -> tuple[int, int]:
    """Pair as many of N named with S seen as fit, and of these as many as can be better.

    Returns:
        Pairs that fit, and those of them that are better, too.
    """
    better_NS = fits_NS if better_NS is None else fits_NS & better_NS
    # One pair more outweighs being better in all others.
    worth_NS = fits_NS * (len(fits_NS) + 1) + better_NS
    pairs = linear_sum_assignment(worth_NS, maximize=True)
    return int(fits_NS[pairs].sum()), int(better_NS[pairs].sum())
