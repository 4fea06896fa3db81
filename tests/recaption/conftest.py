"""Image shards of known scenes, for the tests of recaptioning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.outputs.ledger import Outcome, Row
from data_pipeline.outputs.shards import Sample
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.pictures.images import encode_image
from t2i.config import ASSETS_FOLDER
from t2i.shapes import random_scene, render

NANO_MODEL = str(ASSETS_FOLDER / "nano" / "text_encoder")


def scene_image(seed: int) -> Image.Image:
    """A picture of the Shapes world."""
    rng = np.random.default_rng(seed)
    return render(random_scene(rng), rng)


def write_images(folder: Path, shards: dict[str, dict[str, bytes]]) -> StepOutput:
    """Image shards as the download writes them, from shard id -> key -> encoded picture."""
    output = StepOutput.open(str(folder))
    output.begin({"made_by": "test"})
    for shard_id, pictures in shards.items():
        with output.writer(shard_id) as writer:
            for key, data in pictures.items():
                sample = Sample(key, {"png": data, "json": b"{}"})
                writer.add(Outcome(Row(key, "ok"), sample))
            writer.commit()
    return output


@pytest.fixture(scope="session")
def nano_model() -> str:
    """The folder of the bundled captioner."""
    return NANO_MODEL


@pytest.fixture(scope="session")
def make_image() -> Callable[[int], Image.Image]:
    """Pictures of the Shapes world by seed."""
    return scene_image


@pytest.fixture
def images(tmp_path: Path) -> StepOutput:
    """Three shards of two pictures; the second picture of the second is cut off."""
    pictures = {
        f"{i // 2:05d}{i % 2:06d}": encode_image(scene_image(i), "png", 0) for i in range(6)
    }
    shards: dict[str, dict[str, bytes]] = {}
    for key, data in pictures.items():
        is_cut = key == "00001000001"
        shards.setdefault(key[:5], {})[key] = data[: len(data) // 2] if is_cut else data
    return write_images(tmp_path / "images", shards)
