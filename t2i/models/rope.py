"""Rotary positions: axial for the image grid, one-dimensional for text.

Shape suffixes: T tokens, H heads, R rotated pairs per head.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and sines of the angles by which channel pairs turn.

    Both float32, (T, H or 1, R), or (B, K, H or 1, R) after a gather of kept tokens.
    """

    cos: Tensor
    sin: Tensor

    def rows(self, keep_ids_BK: Tensor) -> Rotation:
        """The rows of the kept tokens: positions travel with the tokens."""
        return Rotation(self.cos[keep_ids_BK], self.sin[keep_ids_BK])


def axial_positions(height: int, width: int, device: torch.device) -> Tensor:
    """Token centres (y, x) of a grid in [-1, 1], row-major: (height * width, 2) float32.

    The longer side spans [-1, 1]; the shorter is shrunk to keep the aspect ratio (HDiT).
    """
    longer = max(height, width)
    # centre of cell i of n cells of size 2 / longer, around 0
    y_h = (2 * torch.arange(height, device=device, dtype=torch.float32) + 1 - height) / longer
    x_w = (2 * torch.arange(width, device=device, dtype=torch.float32) + 1 - width) / longer
    return torch.stack(torch.meshgrid(y_h, x_w, indexing="ij"), dim=-1).flatten(0, 1)


def axial_frequencies(num_heads: int, head_width: int, device: torch.device) -> Tensor:
    """(H, head_width / 8) float32: log-spaced in [pi, 10 pi), dealt out to the heads in turn.

    Source: Crowson et al., HDiT (arXiv 2401.11605), section 4.3.
    """
    count = num_heads * head_width // 8
    exponent = torch.arange(count, device=device, dtype=torch.float32) / count
    frequencies = math.pi * 10**exponent
    return frequencies.view(head_width // 8, num_heads).T


def axial_rotation(
    height: int, width: int, num_heads: int, head_width: int, device: torch.device
) -> Rotation:
    """Rotation of an image grid: head_width / 4 pairs, first those turned by y, then by x.

    Recomputed from constants at each forward (microseconds), never stored: a buffer would lose
    its precision when the model is cast to bf16.
    """
    positions_T2 = axial_positions(height, width, device)
    frequencies_HR = axial_frequencies(num_heads, head_width, device)
    angles_T2HR = positions_T2[:, :, None, None] * frequencies_HR
    angles_THR = torch.cat(angles_T2HR.unbind(1), dim=-1)
    return Rotation(angles_THR.cos(), angles_THR.sin())


def text_rotation(length: int, head_width: int, device: torch.device) -> Rotation:
    """The usual RoPE of language models (base 10,000) over text positions 0, 1, ...: all channels."""
    pairs = head_width // 2
    exponent = torch.arange(pairs, device=device, dtype=torch.float32) / pairs
    positions_T = torch.arange(length, device=device, dtype=torch.float32)
    angles_T1R = (positions_T[:, None] * 10_000**-exponent).unsqueeze(1)
    return Rotation(angles_T1R.cos(), angles_T1R.sin())


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn channel pairs (i, i + R) for i < R; channels from 2R on stay as they are.

    Args:
        x: (..., T, H, head width) queries or keys, heads after tokens; the rotation broadcasts.

    Returns:
        the shape and dtype of `x`.
    """
    pairs = rotation.cos.shape[-1]
    cos, sin = rotation.cos.to(x.dtype), rotation.sin.to(x.dtype)
    first, second, rest = x.split((pairs, pairs, x.shape[-1] - 2 * pairs), dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
