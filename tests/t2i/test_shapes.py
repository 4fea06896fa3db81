"""Proves the Shapes world: captions tell the scene, the detector finds it, drawing is repeatable."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from t2i.shapes import (
    Scene,
    SceneObject,
    captions,
    detect,
    parse_caption,
    parse_scene,
    random_scene,
    render,
)


def scene_and_picture(seed: int) -> tuple[Scene, Image.Image]:
    rng = np.random.default_rng(seed)
    scene = random_scene(rng)
    return scene, render(scene, rng)


@pytest.mark.parametrize("first", [0, 100])
def test_the_detector_finds_exactly_the_scene(first: int) -> None:
    for seed in range(first, first + 100):
        scene, picture = scene_and_picture(seed)
        assert detect(picture) == scene.objects


def test_the_detector_stands_blur_and_noise() -> None:
    right = 0
    for seed in range(100):
        scene, picture = scene_and_picture(seed)
        pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.0)), dtype=np.float64)
        noise = np.random.default_rng(seed).normal(0, 6, pixels.shape)
        noisy = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
        right += detect(noisy) == scene.objects
    assert right >= 95


def test_an_empty_picture_holds_nothing() -> None:
    assert detect(Image.new("RGB", (128, 128), (190, 190, 190))) == ()


def test_every_caption_level_names_the_objects_in_order() -> None:
    for seed in range(200):
        scene, _ = scene_and_picture(seed)
        detailed, sentences, sentence, keywords = captions(scene)
        assert parse_caption(detailed) == scene.objects
        assert parse_caption(sentences) == scene.objects
        nouns = [(item.color, item.shape) for item in scene.objects]
        for text in (sentence, keywords):
            assert [(item.color, item.shape) for item in parse_caption(text)] == nouns


def test_a_detailed_caption_tells_the_whole_scene() -> None:
    for seed in range(200):
        scene, _ = scene_and_picture(seed)
        assert parse_scene(captions(scene)[0]) == scene


@pytest.mark.parametrize("change", [("one object", "two objects"), (" plain", ""), (".", "!")])
def test_a_text_that_tells_less_than_a_scene_is_refused(change: tuple[str, str]) -> None:
    scene = Scene((SceneObject("circle", "red", "small", "top"),), "plain", "white")
    detailed, *others = captions(scene)
    for text in (detailed.replace(*change), f"{detailed} And more.", *others, ""):
        with pytest.raises(ValueError, match="does not tell a whole scene"):
            parse_scene(text)


def test_levels_get_shorter() -> None:
    for seed in range(50):
        lengths = [len(text) for text in captions(scene_and_picture(seed)[0])]
        assert lengths == sorted(lengths, reverse=True)


def test_a_free_prompt_is_parsed_with_what_it_tells() -> None:
    assert parse_caption("A small red circle and a blue cross") == (
        SceneObject("circle", "red", "small", ""),
        SceneObject("cross", "blue", "", ""),
    )


def test_drawing_is_a_function_of_the_generator() -> None:
    _, first = scene_and_picture(7)
    _, again = scene_and_picture(7)
    assert first.tobytes() == again.tobytes()
    assert first.size == (128, 128)


@pytest.mark.parametrize("size", [192, 256])
def test_other_sizes_work(size: int) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = random_scene(rng)
        assert detect(render(scene, rng, size)) == scene.objects


def test_the_smallest_pictures_are_drawn_to_their_rim() -> None:
    """At 64 px, the least that data_pipeline.source.image_size takes, shapes are coarse; colours and
    places are right."""
    for seed in range(100):
        rng = np.random.default_rng(seed)
        scene = random_scene(rng)
        found = [(item.color, item.place) for item in detect(render(scene, rng, 64))]
        assert found == [(item.color, item.place) for item in scene.objects]
