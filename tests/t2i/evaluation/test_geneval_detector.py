"""Proves what becomes of Mask2Former's output: which pairs are kept, their scores, boxes and crops; and
that a colour is asked for only when the judge asks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from t2i.encoders.clip import random_clip
from t2i.evaluation.geneval import CLASSES, COLORS
from t2i.evaluation.geneval_detector import (
    Detector,
    box_of,
    crop_on_grey,
    prepare,
    random_detector,
    select,
)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return random_detector(2, random_clip(0), torch.device("cpu"))


def test_the_surest_pairs_of_query_and_class() -> None:
    """One query may stand for two classes; nothing's probability counts in none."""
    probabilities = torch.tensor([[0.6, 0.3, 0.1], [0.05, 0.05, 0.9], [0.1, 0.7, 0.2]])
    masks = torch.full((3, 2, 2), -1.0)
    masks[0, 0] = 2.0
    masks[2, :, 0] = torch.tensor([1.0, 3.0])
    scores, classes, chosen = select(probabilities.log(), masks, num=3)
    assert classes.tolist() == [1, 0, 1]
    sure_of_2 = (1 / (1 + np.exp(-1)) + 1 / (1 + np.exp(-3))) / 2
    sure_of_0 = 1 / (1 + np.exp(-2))
    expected = [0.7 * sure_of_2, 0.6 * sure_of_0, 0.3 * sure_of_0]
    assert scores.tolist() == pytest.approx(expected, rel=1e-5)
    assert chosen[0].tolist() == [[True, False], [True, False]]
    assert chosen[1].tolist() == [[True, True], [False, False]]


def test_a_mask_without_pixels_has_the_score_0() -> None:
    scores, _, _ = select(torch.zeros(1, 2), torch.full((1, 2, 2), -5.0), num=1)
    assert scores.tolist() == [0]


def test_a_box_ends_behind_the_last_pixels() -> None:
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[2:4, 5:8] = True
    mask[3, 1] = True
    assert box_of(mask) == (1, 2, 8, 4)


def test_a_crop_shows_the_object_alone() -> None:
    pixels = np.full((4, 4, 3), 7, np.uint8)
    mask = np.zeros((4, 4), bool)
    mask[1, 1] = mask[2, 2] = True
    crop = crop_on_grey(pixels, mask, (1, 1, 3, 3))
    assert crop[..., 0].tolist() == [[7, 153], [153, 7]]


@pytest.mark.parametrize(
    ("size", "inner", "outer"),
    [((400, 400), (800, 800), (800, 800)), ((300, 900), (444, 1333), (448, 1344))],
)
def test_pictures_are_resized_and_padded(
    size: tuple[int, int], inner: tuple[int, int], outer: tuple[int, int]
) -> None:
    images, mask, found = prepare(np.full((*size, 3), 255, np.uint8), short_side=800)
    assert found == inner
    assert images.shape == (1, 3, *outer)
    assert int(mask.sum()) == inner[0] * inner[1]
    white = (255 - 123.675) / 58.395
    assert images[0, 0, : inner[0], : inner[1]].min() == pytest.approx(white, rel=1e-5)
    assert images[0, :, inner[0] :].abs().sum() == 0


def test_detections_of_a_picture(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    asked: list[tuple[int, ...]] = []

    def color_of(crop_HW3: np.ndarray, name: str) -> str:
        asked.append(crop_HW3.shape)
        return "red"

    monkeypatch.setattr(detector, "color_of", color_of)
    found = detector.detect(pixels)
    assert 0 < len(found) <= 100
    assert {item.name for item in found} <= set(CLASSES)
    assert all(0 <= item.score <= 1 for item in found)
    for x0, y0, x1, y1 in (item.box for item in found):
        assert 0 <= x0 < x1 <= 64
        assert 0 <= y0 < y1 <= 48
    assert asked == []
    color, box = found[0].color, found[0].box
    assert callable(color)
    assert color() == "red"
    assert asked == [(box[3] - box[1], box[2] - box[0], 3)]


def test_a_colour_is_that_whose_prompts_are_nearest(detector: Detector) -> None:
    clip, crop = detector.clip, np.full((9, 9, 3), 200, np.uint8)
    seen = clip.embed_pictures([crop])[0]
    likeness = {}
    for color in COLORS:
        texts = [
            f"a photo of a {color} car",
            f"a photo of a {color}-colored car",
            f"a photo of a {color} object",
        ]
        likeness[color] = float(
            torch.nn.functional.normalize(clip.embed_texts(texts).mean(0), dim=0) @ seen
        )
    assert detector.color_of(crop, "car") == max(likeness, key=likeness.__getitem__)
