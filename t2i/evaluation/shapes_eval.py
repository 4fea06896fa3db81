"""Scores of pictures against the Shapes prompts that they were made from, without any model.

An object that a prompt names counts as found when the detector sees, in the picture, an object
not yet matched that agrees with it in all that the score asks for. Each score is the share of
named objects that are found; ``scene`` is the share of pictures with all named objects right in
colour and shape and nothing else beside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from PIL import Image

from t2i.shapes import SceneObject, detect, parse_caption


@dataclass(frozen=True)
class ShapesScores:
    """Shares in [0, 1] over a set of pictures."""

    color: float
    shape: float
    color_and_shape: float
    place: float
    scene: float
    num_objects: int
    num_images: int


def score_images(prompts: Sequence[str], images: Sequence[Image.Image]) -> ShapesScores:
    """Compare pictures with their prompts, pair by pair.

    Raises:
        ValueError: a prompt names no object of the Shapes world, or there are no pictures.
    """
    if not images:
        raise ValueError("there are no pictures to score")
    found: Counter[str] = Counter()
    num_objects = num_placed = 0
    for prompt, image in zip(prompts, images, strict=True):
        named = parse_caption(prompt)
        if not named:
            raise ValueError(
                f"the prompt {prompt!r} names no object of the Shapes world, e.g. 'a red circle'"
            )
        num_objects += len(named)
        num_placed += sum(1 for item in named if item.place)
        found.update(_matches(named, detect(image)))
    return ShapesScores(
        color=found["color"] / num_objects,
        shape=found["shape"] / num_objects,
        color_and_shape=found["color_and_shape"] / num_objects,
        place=found["place"] / max(num_placed, 1),
        scene=found["scene"] / len(images),
        num_objects=num_objects,
        num_images=len(images),
    )


def as_dict(scores: ShapesScores) -> dict[str, float]:
    """The scores as plain numbers, rounded to four digits."""
    return {name: round(value, 4) for name, value in asdict(scores).items()}


def _matches(named: Sequence[SceneObject], seen: Sequence[SceneObject]) -> Counter[str]:
    """How many of the named objects are seen, by each notion of agreement."""
    placed = [item for item in named if item.place]
    counts = {
        "color": _num_common([i.color for i in named], [i.color for i in seen]),
        "shape": _num_common([i.shape for i in named], [i.shape for i in seen]),
        "color_and_shape": _num_common(
            [(i.color, i.shape) for i in named], [(i.color, i.shape) for i in seen]
        ),
        "place": _num_common(
            [(i.color, i.shape, i.place) for i in placed],
            [(i.color, i.shape, i.place) for i in seen],
        ),
    }
    counts["scene"] = int(counts["color_and_shape"] == len(named) == len(seen))
    return Counter(counts)


def _num_common(named: Sequence[object], seen: Sequence[object]) -> int:
    return sum((Counter(named) & Counter(seen)).values())
