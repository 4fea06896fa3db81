"""Proves the shipped Shapes classifier: it tells places apart, as well as its metrics say, and its
vector is the mean over places."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from launch.nano.classifier import classes, drawn
from t2i.config import ASSETS_FOLDER
from t2i.encoders.shapes_features import OF_PLACE, ShapesFeatures, load_shapes_features
from t2i.shapes import PLACES, Scene, SceneObject, render

NUM_SCENES = 96


@pytest.fixture(scope="module")
def network() -> ShapesFeatures:
    return load_shapes_features(ASSETS_FOLDER / "nano" / "classifier")


def test_it_tells_fresh_scenes_as_well_as_its_metrics_say(network: ShapesFeatures) -> None:
    images, targets = drawn(777, 0, NUM_SCENES)
    with torch.inference_mode():
        answers = network.model(images)
    is_object = targets["shape"] < OF_PLACE["shape"] - 1
    for name in ("shape", "color", "size"):
        share = (answers[name].argmax(-1) == targets[name])[is_object].float().mean().item()
        assert share == pytest.approx(network.accuracy[f"{name}, drawn"], abs=0.05)
        assert network.accuracy[f"{name}, drawn"] > 0.95
        assert network.accuracy[f"{name}, through the VAE"] > 0.9


def test_an_object_is_told_at_its_place_and_nothing_elsewhere(network: ShapesFeatures) -> None:
    for place in PLACES:
        scene = Scene((SceneObject("square", "blue", "large", place),), "plain", "white")
        picture = np.asarray(render(scene, np.random.default_rng(0)))
        image = torch.from_numpy(picture.copy()).permute(2, 0, 1).unsqueeze(0) / 127.5 - 1
        with torch.inference_mode():
            answers = network.model(image)
        for name, target in classes([scene]).items():
            assert torch.equal(answers[name].argmax(-1), target), (place, name)


def test_the_vector_is_the_mean_over_places_whatever_the_batch(network: ShapesFeatures) -> None:
    images, _ = drawn(778, 0, 3)
    pixels = [((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy() for image in images]
    together = network.embed_pictures(pixels)
    with torch.inference_mode():
        expected = network.model.places(images).mean(dim=1)
    torch.testing.assert_close(together, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(network.embed_pictures(pixels[1:2]), together[1:2])
