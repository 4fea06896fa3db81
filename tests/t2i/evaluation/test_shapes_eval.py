"""Proves the Shapes scores on scenes whose right score is known by construction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i.evaluate import main
from t2i.evaluation.shapes_eval import score_images
from t2i.sampling.image_folder import ImageFolder, plan_images
from t2i.shapes import Scene, SceneObject, captions, render

RED_CIRCLE = SceneObject("circle", "red", "large", "top left")
BLUE_SQUARE = SceneObject("square", "blue", "small", "center")
GREEN_CROSS = SceneObject("cross", "green", "large", "bottom right")


def draw(*objects: SceneObject) -> Image.Image:
    return render(Scene(objects, "plain", "gray"), np.random.default_rng(0))


def prompt(*objects: SceneObject, level: int = 0) -> str:
    return captions(Scene(objects, "plain", "gray"))[level]


def test_right_pictures_score_one() -> None:
    scores = score_images(
        [prompt(RED_CIRCLE, BLUE_SQUARE), prompt(GREEN_CROSS)],
        [draw(RED_CIRCLE, BLUE_SQUARE), draw(GREEN_CROSS)],
    )
    assert (scores.color, scores.shape, scores.color_and_shape) == (1, 1, 1)
    assert (scores.place, scores.scene) == (1, 1)
    assert (scores.num_objects, scores.num_images) == (3, 2)


def test_each_score_misses_what_is_wrong() -> None:
    moved = SceneObject("circle", "red", "large", "bottom")
    recolored = SceneObject("circle", "green", "large", "top left")
    scores = score_images([prompt(RED_CIRCLE)] * 2, [draw(moved), draw(recolored)])
    assert scores.color == 0.5
    assert scores.shape == 1
    assert scores.color_and_shape == 0.5
    assert scores.place == 0
    assert scores.scene == 0.5


def test_an_extra_object_spoils_the_scene_only() -> None:
    scores = score_images([prompt(RED_CIRCLE)], [draw(RED_CIRCLE, BLUE_SQUARE)])
    assert scores.color_and_shape == 1
    assert scores.scene == 0


def test_one_seen_object_matches_one_named_object() -> None:
    scores = score_images(["a red circle and a red circle"], [draw(RED_CIRCLE)])
    assert scores.color_and_shape == 0.5


def test_a_prompt_without_objects_is_refused() -> None:
    with pytest.raises(ValueError, match="names no object"):
        score_images(["a lovely day"], [draw(RED_CIRCLE)])


def test_the_command_scores_the_images_of_the_last_finished_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ImageFolder(tmp_path)
    for item in (BLUE_SQUARE, RED_CIRCLE):
        jobs = plan_images(
            [prompt(RED_CIRCLE, level=2)], 1, first_seed=len(item.color), settings={}
        )
        folder.write(jobs[0], draw(item))
        folder.finish(jobs)
    assert len(list(tmp_path.glob("0*.png"))) == 2
    assert main(["shapes", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["color_and_shape"] == 1
    assert "color_and_shape" in capsys.readouterr().out


def test_a_folder_without_a_finished_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"images\.jsonl is missing"):
        main(["shapes", str(tmp_path)])
