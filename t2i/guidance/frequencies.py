"""Frequency-decoupled guidance (FDG, arXiv 2506.19713): low and high frequencies weighed apart.

A level of the Laplacian pyramid, as kornia's: blurred by the binomial 5 x 5 kernel (mirrored at the
border) and halved, then doubled and blurred again. The pyramid is linear, so that guiding its levels
of two predictions is guiding those of their difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.guidance.schedules import Schedule

BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)


class FrequencyDecoupling:
    """FDG for one trajectory; it remembers nothing.

    Args:
        omega: scale of the low frequencies, 1 means none.
        omega_high: scale of the others.
    """

    def __init__(self, omega: Schedule, omega_high: Schedule) -> None:
        self.omega = omega
        self.omega_high = omega_high

    def __call__(
        self, predictions: Sequence[Tensor], x_t: Tensor, timestep: float, fraction: float
    ) -> Tensor:
        """The guided velocity from the conditional and the unconditional one, (B, C, H, W)."""
        conditional, unconditional = predictions
        difference = conditional - unconditional
        low = low_frequencies(difference)
        guided = self.omega(fraction) * low + self.omega_high(fraction) * (difference - low)
        return unconditional + guided


def low_frequencies(x_BCHW: Tensor) -> Tensor:
    """What is left after a level of the pyramid, at the same size.

    Raises:
        ValueError: a side that is odd or below 4.
    """
    height, width = x_BCHW.shape[-2:]
    if height % 2 or width % 2 or min(height, width) < 4:
        raise ValueError(
            f"fdg halves latents, so both of their sides must be even and at least 4, got "
            f"{height}x{width}"
        )
    half = F.interpolate(blur(x_BCHW), scale_factor=0.5, mode="bilinear", align_corners=False)
    double = F.interpolate(half, size=(height, width), mode="bilinear", align_corners=False)
    return blur(double)


def blur(x_BCHW: Tensor) -> Tensor:
    """By the binomial 5 x 5 kernel, mirrored at the border."""
    channels = x_BCHW.shape[1]
    weights = torch.tensor(BINOMIAL, dtype=x_BCHW.dtype, device=x_BCHW.device)
    kernel = torch.outer(weights, weights) / weights.sum() ** 2
    padded = F.pad(x_BCHW, (2, 2, 2, 2), mode="reflect")
    return F.conv2d(padded, kernel.expand(channels, 1, 5, 5), groups=channels)
