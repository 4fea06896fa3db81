"""DINOv2: pictures as vectors, for the Frechet distance that fits people's judgment best.

(Oquab et al., "DINOv2: learning robust visual features without supervision", 2023; Stein et al.,
"Exposing flaws of generative model evaluation metrics and their unfair treatment of diffusion
models", 2023.) The vector is the class token after the last norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from t2i.encoders.pictures import Preparation, prepare_pictures
from t2i.encoders.random_weights import randomize
from t2i.encoders.weights_hash import folder_hash, no_weights

SIZE = 224  # whatever size the model was last trained at
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Dinov2:
    """A frozen DINOv2; make it with `load_dinov2` or `random_dinov2`.

    Attributes:
        weights_hash: SHA-256 of the weights' file, "hub:NAME", or "random-SEED".
        is_published: whether the weights are those of a name on the hub.
    """

    def __init__(
        self, model: Dinov2Model, weights_hash: str, is_published: bool, size: int = SIZE
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.weights_hash, self.is_published, self.size = weights_hash, is_published, size

    @torch.inference_mode()
    def embed_pictures(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """(B, D) float32 on the CPU.

        Args:
            pixels: (H, W, 3) uint8 RGB each; the whole picture is squeezed to a square.
        """
        how = Preparation(self.size, crop=False, mean=MEAN, std=STD)
        images = prepare_pictures(pixels, how).to(self.model.device, self.model.dtype)
        return self.model(pixel_values=images).pooler_output.float().cpu()


def load_dinov2(name: str, device: torch.device | str = "cpu") -> Dinov2:
    """DINOv2 of a local folder, or of a name on the hub.

    Raises:
        FileNotFoundError: it is neither; says what to get, and where.
    """
    try:
        model = Dinov2Model.from_pretrained(name, dtype=torch.float32)
    except OSError as error:
        raise no_weights("DINOv2", name, error) from None
    is_local = Path(name).is_dir()
    found = folder_hash(Path(name)) if is_local else f"hub:{name}"
    return Dinov2(model.to(device), found, is_published=not is_local)


def random_dinov2(seed: int, device: torch.device | str = "cpu") -> Dinov2:
    """A tiny DINOv2 with random weights, for trying the way."""
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = Dinov2Model(config)
    randomize(model, seed)
    return Dinov2(model.to(device), f"random-{seed}", is_published=False, size=56)
