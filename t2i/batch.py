"""The contract of loader and trainer: one micro-batch of latents and captions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TrainingBatch:
    """A micro-batch of one rank at one step."""

    moments: Tensor
    captions: tuple[str, ...]
    keys: tuple[str, ...]
    sample_ids: Tensor
    step: int
