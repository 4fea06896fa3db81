"""Random weights for networks whose real ones are not at hand: the way runs, the numbers mean nothing."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def randomize(network: nn.Module, seed: int) -> None:
    """Give a network weights that are the same for the same seed, and keep activations' size.

    Scales and shifts of norms stay as they are made: 1 and 0.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, values in network.named_parameters():
        if values.ndim > 1:
            values.normal_(0, values[0].numel() ** -0.5, generator=generator)
        elif "norm" not in name:
            values.normal_(0, 0.1, generator=generator)
