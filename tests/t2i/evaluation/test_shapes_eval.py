"""Proves the Shapes scores on scenes whose right score is known by construction.

Each score misses its own mistake and no other, lies in [0, 1] and never above a looser one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from t2i.evaluation.shapes_eval import SCORES, ShapesScores, Share, score_images
from t2i.shapes import Scene, SceneObject, captions, random_scene, render

RED_CIRCLE = SceneObject("circle", "red", "large", "top left")
BLUE_SQUARE = SceneObject("square", "blue", "small", "center")
GREEN_CROSS = SceneObject("cross", "green", "large", "bottom right")


def draw(*objects: SceneObject) -> Image.Image:
    return render(Scene(objects, "plain", "gray"), np.random.default_rng(0))


def prompt(*objects: SceneObject, level: int = 0) -> str:
    return captions(Scene(objects, "plain", "gray"))[level]


def values(scores: ShapesScores) -> dict[str, float | None]:
    return {name: getattr(scores, name).value for name in SCORES}


def test_right_pictures_score_one() -> None:
    scores = score_images(
        [prompt(RED_CIRCLE, BLUE_SQUARE), prompt(GREEN_CROSS)],
        [draw(RED_CIRCLE, BLUE_SQUARE), draw(GREEN_CROSS)],
    )
    assert values(scores) == dict.fromkeys(SCORES, 1)
    assert (scores.num_objects, scores.num_images) == (3, 2)


@pytest.mark.parametrize(
    ("change", "missed", "undefined"),
    [
        # Of a colour that is not found there is no shape, of an object that is not found no size.
        (
            {"color": "green"},
            {"color", "color_and_shape", "color_at_place", "place", "scene"},
            {"shape_given_color", "size"},
        ),
        (
            {"shape": "cross"},
            {"shape", "color_and_shape", "shape_given_color", "place", "scene"},
            {"size"},
        ),
        ({"place": "bottom"}, {"color_at_place", "place"}, {"size"}),
        ({"size": "small"}, {"size"}, set()),
    ],
)
def test_each_score_misses_its_own_mistake_alone(
    change: dict[str, str], missed: set[str], undefined: set[str]
) -> None:
    drawn = replace(RED_CIRCLE, **change)
    scores = values(score_images([prompt(RED_CIRCLE)], [draw(drawn)]))
    assert {name for name, value in scores.items() if value == 0} == missed
    assert {name for name, value in scores.items() if value is None} == undefined


def test_a_wrong_object_of_the_right_color_at_the_right_place_is_seen() -> None:
    swapped = [replace(RED_CIRCLE, place="center"), replace(BLUE_SQUARE, place="top left")]
    square = replace(RED_CIRCLE, shape="square")
    scores = score_images([prompt(RED_CIRCLE, BLUE_SQUARE)] * 2, [draw(*swapped), draw(square)])
    assert scores.color_at_place == Share(1, 4)
    assert scores.place == Share(0, 4)
    assert scores.shape_given_color == Share(2, 3)


def test_size_is_of_the_objects_found_where_they_are_told() -> None:
    small = replace(RED_CIRCLE, size="small")
    moved = replace(small, place="bottom")
    text = prompt(RED_CIRCLE)
    assert score_images([text] * 2, [draw(small), draw(moved)]).size == Share(0, 1)
    assert score_images(["a small red circle"], [draw(moved, RED_CIRCLE)]).size == Share(1, 1)
    # One seen object does not stand for two, whether or not their places are told.
    both = "a small red circle. At the top left there is a large red circle."
    assert score_images([both], [draw(RED_CIRCLE)]).size == Share(1, 1)


def test_an_extra_object_spoils_count_and_scene_only() -> None:
    scores = values(score_images([prompt(RED_CIRCLE)], [draw(RED_CIRCLE, BLUE_SQUARE)]))
    assert {name for name, value in scores.items() if value != 1} == {"count", "scene"}


def test_what_a_prompt_does_not_tell_has_no_score() -> None:
    scores = score_images(["a red circle"], [draw(RED_CIRCLE)])
    assert (scores.place.value, scores.color_at_place.value, scores.size.value) == (None,) * 3
    assert scores.place.interval is None


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_strict_scores_are_not_above_loose_ones(named: int, seen: int, level: int) -> None:
    text = captions(random_scene(np.random.default_rng(named), 3))[level]
    rng = np.random.default_rng(seen)
    scores = score_images([text], [render(random_scene(rng, 9), rng)])
    shares = [getattr(scores, name) for name in SCORES]
    assert all(0 <= share.num_right <= share.num for share in shares)
    assert all(share.value is None or 0 <= share.value <= 1 for share in shares)
    right = {name: getattr(scores, name).num_right for name in SCORES}
    assert right["color_and_shape"] <= min(right["color"], right["shape"])
    assert right["place"] <= min(right["color_at_place"], right["color_and_shape"])
    assert right["color_at_place"] <= right["color"]
    assert right["scene"] <= right["count"]
    assert right["size"] <= scores.size.num <= right["color_and_shape"]


def test_the_interval_is_wilsons() -> None:
    # Brown, Cai and DasGupta (2001): Wilson's 95 % interval of 0 and of 5 of 10.
    assert Share(0, 10).interval == pytest.approx((0, 0.2775), abs=1e-4)
    assert Share(5, 10).interval == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert Share(10, 10).interval == pytest.approx((0.7225, 1), abs=1e-4)


def test_one_seen_object_matches_one_named_object() -> None:
    scores = score_images(["a red circle and a red circle"], [draw(RED_CIRCLE)])
    assert scores.color_and_shape == Share(1, 2)


def test_a_prompt_without_objects_is_refused() -> None:
    with pytest.raises(ValueError, match="names no object"):
        score_images(["a lovely day"], [draw(RED_CIRCLE)])
