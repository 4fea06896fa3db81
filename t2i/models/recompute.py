"""Gradient checkpointing of blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def call_block(
    block: Callable[..., Tensor], recompute: bool, others: tuple[Any, ...], x_BTD: Tensor
) -> Tensor:
    """A block's output for tokens and other inputs.

    `recompute`: where gradients are wanted, keep the inputs alone for the backward pass, which
    computes the block again.
    """
    if recompute and torch.is_grad_enabled():
        # nothing inside draws random numbers, so there is no state to save
        return checkpoint(block, x_BTD, *others, use_reentrant=False, preserve_rng_state=False)
    return block(x_BTD, *others)
