"""Absolute positions of image tokens: fixed sines and cosines, added once to the tokens.

Axial RoPE (`t2i.models.rope`) is relative, and text enters by cross-attention without positions: on
pure noise no layer of TR-DiT could tell where it is. Added before the first block, positions travel
with kept tokens through a route by themselves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOWEST_FREQUENCY = math.pi / 2  # half a turn from one border to the other
HIGHEST_FREQUENCY = 10 * math.pi


def highest_frequency(smallest_grid: int) -> float:
    """Radians per unit at which a grid of ``smallest_grid`` tokens a side aliases, at most 10 pi.

    Tokens lie 2 / N apart, so the Nyquist frequency is pi N / 2. Waves above it look alike on the
    grid that is trained, but not on others: a model that relies on them fails at another size.
    """
    return min(math.pi * smallest_grid / 2, HIGHEST_FREQUENCY)


def absolute_positions(
    height: int, width: int, dim: int, smallest_grid: int, device: torch.device
) -> Tensor:
    """Embedding of the token centres of a grid, row-major: (height * width, dim) float32.

    Sines then cosines of y, then the same of x, at dim / 4 frequencies log-spaced in [pi/2,
    `highest_frequency`). Each side spans [-1, 1], whatever the aspect ratio: "left" is left in any
    picture. Recomputed at each forward, never stored, as the rotations are.
    """
    exponent_F = torch.arange(dim // 4, device=device, dtype=torch.float32) / (dim // 4)
    ratio = highest_frequency(smallest_grid) / LOWEST_FREQUENCY
    frequencies_F = LOWEST_FREQUENCY * ratio**exponent_F
    y_h, x_w = (
        (2 * torch.arange(side, device=device, dtype=torch.float32) + 1 - side) / side
        for side in (height, width)
    )
    positions_2T = torch.stack(torch.meshgrid(y_h, x_w, indexing="ij")).flatten(1)
    angles_2TF = positions_2T.unsqueeze(-1) * frequencies_F
    waves_2TE = torch.cat((angles_2TF.sin(), angles_2TF.cos()), dim=-1)
    return torch.cat(waves_2TE.unbind(0), dim=-1)
