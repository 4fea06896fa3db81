"""Proves GenEval in the Shapes world: scenes that obey score one, scenes that break a rule zero."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2i.evaluation.geneval import TASKS, Metadata, judge, read_metadata, summarize
from t2i.evaluation.shapes_ceiling import rendered
from t2i.evaluation.shapes_geneval import (
    SHAPES_VOCABULARY,
    shapes_detections,
    write_shapes_metadata,
)
from t2i.shapes import Scene, SceneObject, detect, detect_with_boxes, parse_scene, render

CIRCLE = SceneObject("circle", "red", "large", "left")
SQUARE = SceneObject("square", "blue", "small", "right")


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[Metadata]:
    path = tmp_path_factory.mktemp("metadata") / "prompts.jsonl"
    write_shapes_metadata(path, prompts_per_task=25, seed=3)
    return read_metadata(path, SHAPES_VOCABULARY)


def test_scenes_that_obey_score_one(lines: list[Metadata]) -> None:
    pictures = rendered([line.prompt for line in lines], size=128)
    verdicts = [
        judge(line, shapes_detections(image)) for line, image in zip(lines, pictures, strict=True)
    ]
    assert [verdict.reasons for verdict in verdicts if not verdict.right] == []
    scores = summarize(verdicts)
    assert scores.overall is not None
    assert scores.overall.value == 1
    assert {task: score.value for task, score in scores.tasks.items()} == dict.fromkeys(TASKS, 1)
    assert (scores.num_images, scores.num_prompts) == (150, 150)


def spoiled(line: Metadata) -> Scene:
    """The scene of a prompt with the one mistake that its task is about."""
    scene = parse_scene(line.prompt)
    first, *others = scene.objects
    free = next(shape for shape in ("circle", "square", "cross") if shape not in str(line.include))
    if line.tag in ("single_object", "two_object"):
        objects = (replace(first, shape=free), *others)
    elif line.tag == "counting":
        objects = (*others,)
    elif line.tag == "colors":
        objects = (replace(first, color="cyan" if first.color != "cyan" else "red"),)
    elif line.tag == "position":
        objects = (replace(first, place=others[0].place), replace(others[0], place=first.place))
    else:
        objects = (
            replace(first, color=others[0].color),
            replace(others[0], color=first.color),
        )
    return replace(scene, objects=objects)


def test_scenes_that_break_the_rule_of_their_task_score_zero(lines: list[Metadata]) -> None:
    verdicts = [
        judge(line, shapes_detections(render(spoiled(line), np.random.default_rng(0))))
        for line in lines
    ]
    scores = summarize(verdicts)
    assert {task: score.value for task, score in scores.tasks.items()} == dict.fromkeys(TASKS, 0)


def test_one_object_too_many_is_wrong_where_objects_are_counted() -> None:
    pair = {"class": "circle", "count": 2}
    line: dict[str, Any] = {"tag": "counting", "prompt": "p", "include": [pair]}
    asked = Metadata.model_validate({**line, "exclude": [{"class": "circle", "count": 3}]})
    places = ("left", "center", "right")
    for num, right in ((1, False), (2, True), (3, False)):
        scene = Scene(tuple(replace(CIRCLE, place=p) for p in places[:num]), "plain", "gray")
        image = render(scene, np.random.default_rng(0))
        assert judge(asked, shapes_detections(image)).right is right


def test_metadata_is_seeded_and_all_four_relations_occur(
    lines: list[Metadata], tmp_path: Path
) -> None:
    texts = []
    for number, seed in enumerate((3, 3, 4)):
        write_shapes_metadata(tmp_path / str(number), prompts_per_task=25, seed=seed)
        texts.append((tmp_path / str(number)).read_text())
    assert texts[0] == texts[1] != texts[2]
    found = {need.position[0] for line in lines for need in line.include if need.position}
    assert found == {"left of", "right of", "above", "below"}


def test_boxes_are_those_of_the_objects_and_detect_is_unchanged() -> None:
    image = render(Scene((CIRCLE, SQUARE), "plain", "gray"), np.random.default_rng(0))
    (circle, (x0, y0, x1, y1)), (square, (left, *_)) = detect_with_boxes(image)
    assert (circle, square) == detect(image) == (CIRCLE, SQUARE)
    assert x1 < left
    # Half a side is 16 of 128 pixels, give or take 6 %, the centre a sixth of the width, +- 3.
    assert x1 - x0 == pytest.approx(32, abs=3)
    assert (x0 + x1) / 2 == pytest.approx(128 / 6, abs=4)
    assert (y0 + y1) / 2 == pytest.approx(64, abs=4)
