"""GenEval's judge: detections of a picture against what its prompt asks for. No detector in here.

The rules are those of Ghosh, Hajishirzi and Schmidt ("GenEval: an object-focused framework for
evaluating text-to-image alignment", 2023), as in their evaluation/evaluate_images.py:

- Detections count above a score of 0.3, or 0.9 in the task ``counting``; of each class the best 16.
  Boxes that overlap are all kept.
- Each requirement of ``include`` takes the best ``count`` of its class and fails if there are
  fewer. If it names a colour, all that it took must have it. If it names a relation to an earlier
  requirement, all that it took must stand so to all that the earlier one took, and fail if the
  earlier one failed.
- Each requirement of ``exclude`` fails if at least ``count`` of its class are there.
- A picture is right if nothing fails. A task's score is the share of right pictures, the overall
  score the mean of the six tasks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from t2i import rng
from t2i.evaluation.intervals import NUM_DRAWS, Ratios, ratio_draws, share_ends

Task = Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]
Relation = Literal["left of", "right of", "above", "below"]
Box = tuple[float, float, float, float]

TASKS: tuple[Task, ...] = get_args(Task)
MIN_SCORE, MIN_SCORE_COUNTING = 0.3, 0.9
MAX_PER_CLASS = 16
# An offset loses this part of the two boxes' summed sides; what is left, as a part of the whole
# distance, must exceed the second number along an axis. The third is in pixels.
SHRINK, MIN_OFFSET, NO_OFFSET = 0.1, 0.5, 1e-3


@dataclass(frozen=True)
class Vocabulary:
    """The classes and colours that a detector can tell."""

    classes: tuple[str, ...]
    colors: tuple[str, ...]


# COCO's 80 in COCO's order, under GenEval's names.
# fmt: off
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse",
    "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PHOTOS = Vocabulary(CLASSES, COLORS)


class Requirement(BaseModel):
    """``count`` objects of a class, maybe of a colour, maybe (relation, number of requirement)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(alias="class")
    count: int = Field(ge=1)
    color: str | None = None
    position: tuple[Relation, int] | None = None


class Metadata(BaseModel):
    """One line of GenEval's metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tag: Task
    prompt: str
    include: tuple[Requirement, ...] = Field(min_length=1)
    exclude: tuple[Requirement, ...] = ()


@dataclass(frozen=True)
class Detection:
    """One object that a detector sees.

    Attributes:
        name: its class, in GenEval's words.
        score: in [0, 1].
        box: x0, y0, x1, y1 in pixels, y downwards.
        color: its colour, or a function that finds it; called only where a prompt names a colour.
    """

    name: str
    score: float
    box: Box
    color: str | Callable[[], str] = ""


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a picture, in words; nothing if it is right."""

    metadata: Metadata
    reasons: tuple[str, ...]

    @property
    def right(self) -> bool:
        return not self.reasons


@dataclass(frozen=True)
class Score:
    """A share of right pictures, or a mean of such, with its 95 % interval over prompts, in [0, 1]."""

    value: float
    interval: tuple[float, float]
    num_prompts: int


@dataclass(frozen=True)
class GenEvalScores:
    """By task, of those with pictures; ``overall`` needs all six and is None otherwise."""

    tasks: dict[Task, Score]
    overall: Score | None
    num_images: int
    num_prompts: int


def read_metadata(path: Path, vocabulary: Vocabulary = PHOTOS) -> list[Metadata]:
    """Read a file of JSON lines.

    Raises:
        ValueError: a line is not of GenEval's layout, has an unknown task, relation, class or
            colour, or a prompt occurs twice; names file and line.
    """
    found: dict[str, Metadata] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            metadata = Metadata.model_validate_json(line)
            check_words(metadata, vocabulary)
            if metadata.prompt in found:
                raise ValueError(f"the prompt {metadata.prompt!r} occurs twice")
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{path}:{number}: {where or 'line'}: {first['msg']}") from None
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        found[metadata.prompt] = metadata
    if not found:
        raise ValueError(f"{path}: no prompts in it")
    return list(found.values())


def check_words(metadata: Metadata, vocabulary: Vocabulary) -> None:
    """Raises ValueError for a class or colour that the detector cannot tell, or a relation to a
    requirement that is not an earlier one."""
    for number, needed in enumerate(metadata.include):
        if needed.position is not None and not 0 <= needed.position[1] < number:
            raise ValueError(
                f"include.{number} ({needed.name}) is {needed.position[0]} requirement "
                f"{needed.position[1]}, which is not an earlier one"
            )
    for needed in (*metadata.include, *metadata.exclude):
        if needed.name not in vocabulary.classes:
            raise ValueError(
                f"unknown class {needed.name!r}; the detector tells {', '.join(vocabulary.classes)}"
            )
        if needed.color is not None and needed.color not in vocabulary.colors:
            raise ValueError(
                f"unknown color {needed.color!r}; the detector tells {', '.join(vocabulary.colors)}"
            )


def judge(metadata: Metadata, detections: Iterable[Detection]) -> Verdict:
    """Hold one picture's detections, in any order, against what its prompt asks for."""
    by_class = _best_of_each_class(detections, metadata.tag)
    reasons: list[str] = []
    groups: list[list[Detection] | None] = []
    for needed in metadata.include:
        taken = by_class[needed.name][: needed.count]
        reason = _what_is_wrong(needed, taken, groups)
        if reason:
            reasons.append(reason)
        groups.append(None if reason else taken)
    for refused in metadata.exclude:
        num = len(by_class[refused.name])
        if num >= refused.count:
            reasons.append(f"expected fewer than {refused.count} {refused.name}, found {num}")
    return Verdict(metadata, tuple(reasons))


def relations(box: Box, other: Box) -> set[Relation]:
    """How ``box`` stands to ``other``: none, one or two (diagonally) of the four relations."""
    corners_N22 = np.array([box, other], dtype=float).reshape(2, 2, 2)
    centers_N2 = corners_N22.mean(axis=1)
    sides_N2 = np.abs(corners_N22[:, 1] - corners_N22[:, 0])
    offset_2 = centers_N2[0] - centers_N2[1]
    shrunk_2 = np.sign(offset_2) * np.maximum(np.abs(offset_2) - SHRINK * sides_N2.sum(axis=0), 0)
    if (np.abs(shrunk_2) < NO_OFFSET).all():
        return set()
    x, y = shrunk_2 / np.linalg.norm(offset_2)
    holds: dict[Relation, bool] = {
        "left of": x < -MIN_OFFSET,
        "right of": x > MIN_OFFSET,
        "above": y < -MIN_OFFSET,
        "below": y > MIN_OFFSET,
    }
    return {relation for relation, is_so in holds.items() if is_so}


def summarize(verdicts: Sequence[Verdict]) -> GenEvalScores:
    """Scores of all pictures, with bootstrap intervals over prompts: a prompt's pictures are drawn
    together, and each task draws among its own prompts.

    Where all pictures of a task agree, its interval is Wilson's.

    Raises:
        ValueError: there are no pictures.
    """
    if not verdicts:
        raise ValueError("there are no pictures to score")
    generator = rng.generator(0, "bootstrap", 0, 0)
    by_task: dict[Task, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by_task[verdict.metadata.tag].append(verdict)
    ratios = {
        task: _shares([v.right for v in own], [v.metadata.prompt for v in own], generator)
        for task, own in by_task.items()
    }
    scores = {task: _score(ratios[task]) for task in TASKS if task in ratios}
    overall = None
    if len(scores) == len(TASKS):
        draws_R = np.mean([ratio.draws_R for ratio in ratios.values()], axis=0)
        mean = float(np.mean([ratio.value for ratio in ratios.values()]))
        overall = _score(Ratios(mean, draws_R, sum(r.num_prompts for r in ratios.values())))
    num_prompts = sum(ratio.num_prompts for ratio in ratios.values())
    return GenEvalScores(scores, overall, len(verdicts), num_prompts)


def _shares(rights: Sequence[bool], prompts: Sequence[str], generator: torch.Generator) -> Ratios:
    """The share of right pictures; of a single prompt a bootstrap has no spread."""
    if len(set(prompts)) == 1:
        share = sum(rights) / len(rights)
        return Ratios(share, np.full(NUM_DRAWS, share), 1)
    return ratio_draws(rights, np.ones(len(rights)), generator, prompts)


def _score(ratios: Ratios) -> Score:
    return Score(ratios.value, share_ends(ratios, ratios.num_prompts), ratios.num_prompts)


def _best_of_each_class(
    detections: Iterable[Detection], task: Task
) -> defaultdict[str, list[Detection]]:
    """The detections that count, by class, the surest first."""
    min_score = MIN_SCORE_COUNTING if task == "counting" else MIN_SCORE
    by_class: defaultdict[str, list[Detection]] = defaultdict(list)
    for detection in sorted(detections, key=lambda detection: -detection.score):
        same = by_class[detection.name]
        if detection.score > min_score and len(same) < MAX_PER_CLASS:
            same.append(detection)
    return by_class


def _what_is_wrong(
    needed: Requirement, taken: Sequence[Detection], groups: Sequence[Sequence[Detection] | None]
) -> str:
    """ "" if those taken fulfil the requirement; ``groups``: taken by earlier ones, or None."""
    if len(taken) < needed.count:
        return f"expected {needed.count} {needed.name}, found {len(taken)}"
    if needed.color is not None:
        colors = [item.color if isinstance(item.color, str) else item.color() for item in taken]
        if any(color != needed.color for color in colors):
            return (
                f"expected {needed.count} {needed.color} {needed.name}, found {', '.join(colors)}"
            )
    if needed.position is not None:
        relation, number = needed.position
        targets = groups[number]
        if targets is None:
            return f"expected {needed.name} {relation} something that is itself missing or wrong"
        for item in taken:
            for target in targets:
                found = relations(item.box, target.box)
                if relation not in found:
                    seen = " and ".join(sorted(found)) or "in no clear relation to"
                    return f"expected {needed.name} {relation} {target.name}, found it {seen} it"
    return ""
