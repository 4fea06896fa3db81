"""The Shapes classifier: a small network whose features stand in for DINOv2's in the Shapes world.

It tells shape, colour and size of what lies in each of the nine places, and pattern and tone of the
background. The vector of a picture is the mean over places of what the last layer reads: of
pictures of 128 x 128 pixels, to which others are resized. Trained by `launch.nano.classifier`.

Shape suffixes: B pictures, D features, P = 9 places.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from t2i.encoders.pictures import Preparation, prepare_pictures
from t2i.encoders.weights_hash import folder_hash
from t2i.shapes import BACKGROUNDS, COLORS, PATTERNS, SHAPES, SIZES

SIZE = 128
CHANNELS = (16, 32, 64, 96)
GRID = 3  # places are GRID x GRID
NUM_GROUPS = 8
# what is told of each place, the last class is "nothing there"
OF_PLACE = {"shape": len(SHAPES) + 1, "color": len(COLORS) + 1, "size": len(SIZES) + 1}
OF_PICTURE = {"pattern": len(PATTERNS), "tone": len(BACKGROUNDS)}
WEIGHTS_NAME = "model.safetensors"
METRICS_NAME = "metrics.json"


class ShapesClassifier(nn.Module):
    """Convolutions that halve the picture four times, then a linear for each place and for all."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *CHANNELS[:-1]), CHANNELS, strict=True):
            layers += [_convolution(before, after, stride=2)]
        layers += [_convolution(CHANNELS[-1], CHANNELS[-1], stride=1)]
        self.layers = nn.Sequential(*layers)
        self.of_place = nn.Linear(CHANNELS[-1], sum(OF_PLACE.values()))
        self.of_picture = nn.Linear(CHANNELS[-1], sum(OF_PICTURE.values()))

    def places(self, images_B3HW: Tensor) -> Tensor:
        """What is read of each place, (B, P, D); images in [-1, 1]."""
        return F.adaptive_avg_pool2d(self.layers(images_B3HW), GRID).flatten(2).transpose(1, 2)

    def features(self, images_B3HW: Tensor) -> Tensor:
        """The vector of each picture, (B, D)."""
        return self.places(images_B3HW).mean(dim=1)

    def forward(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        """Logits: of shape, color and size (B, P, classes), of pattern and tone (B, classes)."""
        places_BPD = self.places(images_B3HW)
        of_place = self.of_place(places_BPD).split(list(OF_PLACE.values()), dim=-1)
        of_picture = self.of_picture(places_BPD.mean(dim=1))
        parts = of_picture.split(list(OF_PICTURE.values()), dim=-1)
        return dict(zip((*OF_PLACE, *OF_PICTURE), (*of_place, *parts), strict=True))


def _convolution(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, padding=1), nn.GroupNorm(NUM_GROUPS, after), nn.SiLU()
    )


@dataclass(frozen=True)
class ShapesFeatures:
    """A frozen classifier as an encoder of pictures.

    Attributes:
        weights_hash: SHA-256 of the weights' file.
        accuracy: what `launch.nano.classifier` measured of it on held-out scenes.
    """

    model: ShapesClassifier
    weights_hash: str
    accuracy: dict[str, float]

    @torch.inference_mode()
    def embed_pictures(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """(B, D) float32 on the CPU.

        Args:
            pixels: (H, W, 3) uint8 RGB each; the whole picture is resized to a square.
        """
        half = (0.5, 0.5, 0.5)  # to [-1, 1]
        images = prepare_pictures(pixels, Preparation(SIZE, crop=False, mean=half, std=half))
        device = next(self.model.parameters()).device
        return self.model.features(images.to(device)).float().cpu()


def save_classifier(model: ShapesClassifier, accuracy: dict[str, float], folder: Path) -> None:
    """Weights in float16, and what was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(half, folder / WEIGHTS_NAME)
    (folder / METRICS_NAME).write_text(json.dumps(accuracy) + "\n")


def load_shapes_features(folder: Path, device: torch.device | str = "cpu") -> ShapesFeatures:
    """The classifier of a folder.

    Raises:
        FileNotFoundError: it is not there; says how to make it.
    """
    if not (folder / WEIGHTS_NAME).is_file():
        raise FileNotFoundError(
            f"{folder}: no Shapes classifier; python -m launch.nano.classifier --output {folder} "
            "trains one"
        )
    model = ShapesClassifier().eval().requires_grad_(False)
    model.load_state_dict(load_file(folder / WEIGHTS_NAME))
    accuracy = json.loads((folder / METRICS_NAME).read_text())
    return ShapesFeatures(model.to(device), folder_hash(folder), accuracy)
