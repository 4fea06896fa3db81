"""Pictures as frozen networks of others want them: resized by Pillow, normalized. No torch.nn here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Preparation:
    """How a network was fed when it was trained.

    Attributes:
        size: pixels of a side.
        crop: whether the middle square is taken first; otherwise the picture is squeezed.
        mean, std: of each channel, of pixels in [0, 1].
    """

    size: int
    crop: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def prepare_pictures(pixels: Sequence[np.ndarray], how: Preparation) -> Tensor:
    """Pictures of any size as a batch: bicubic with antialiasing, as Pillow has it.

    Args:
        pixels: (H, W, 3) uint8 RGB each.
        how: see `Preparation`.

    Returns:
        (B, 3, size, size) float32.
    """
    batch_BHW3 = np.stack([_resized(picture, how) for picture in pixels])
    unit_B3HW = torch.from_numpy(batch_BHW3).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(of).view(1, 3, 1, 1) for of in (how.mean, how.std))
    return (unit_B3HW - mean) / std


def _resized(pixels_HW3: np.ndarray, how: Preparation) -> np.ndarray:
    if how.crop:
        height, width = pixels_HW3.shape[:2]
        side = min(height, width)
        left, top = (width - side) // 2, (height - side) // 2
        # Cropped before: Pillow's own box would let the filter reach beyond it.
        pixels_HW3 = pixels_HW3[top : top + side, left : left + side]
    image = Image.fromarray(np.ascontiguousarray(pixels_HW3))
    return np.asarray(image.resize((how.size, how.size), Image.Resampling.BICUBIC))
