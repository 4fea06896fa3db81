"""The contract of loader and trainer: one micro-batch of latents, captions and perhaps labels.

Shape suffixes: B samples of the micro-batch, C latent channels, h x w latent pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

DROPPED = -1  # in the place of a label; networks are given their own null class for it


@dataclass(frozen=True)
class TrainingBatch:
    """A micro-batch of one rank at one step; all its samples have one resolution.

    Attributes:
        moments: (B, 2C, h, w) float16, the VAE's normalised mean and standard deviation:
            latents = mean + std * noise.
        captions: B texts, level and dropout already drawn; "" = dropped.
        keys: B names of samples within their datasets, for messages.
        sample_ids: (B,) int64, places in the plan of the run: step * global batch + place in the
            global batch. Different for all samples of a run, and the same at every world size.
        step: in [0, 2**32).
        labels: (B,) int64 classes, `DROPPED` = dropped, together with the caption; None = the data
            are read without labels.
        epoch: of the data, from 0, in which the step starts; None = the data have no epochs.
        num_replaced: how many of the samples stand in for others that could not be read.
    """

    moments: Tensor
    captions: tuple[str, ...]
    keys: tuple[str, ...]
    sample_ids: Tensor
    step: int
    labels: Tensor | None = None
    epoch: int | None = None
    num_replaced: int = 0

    def to(self, device: torch.device) -> TrainingBatch:
        """The same batch with its tensors on ``device``, except for the labels."""
        moments = self.moments.to(device, non_blocking=True)
        return replace(
            self, moments=moments, sample_ids=self.sample_ids.to(device, non_blocking=True)
        )

    def pin_memory(self) -> TrainingBatch:
        """The same batch in page-locked memory; `torch.utils.data.DataLoader` calls this."""
        moments, sample_ids = self.moments.pin_memory(), self.sample_ids.pin_memory()
        labels = None if self.labels is None else self.labels.pin_memory()
        return replace(self, moments=moments, sample_ids=sample_ids, labels=labels)
