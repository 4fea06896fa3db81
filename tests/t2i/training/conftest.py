"""A micro-batch of small random latents, for the tests of objectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from t2i.batch import TrainingBatch


@pytest.fixture
def batch() -> TrainingBatch:
    """Four samples of 4 x 8 x 8 latents: 16 tokens of 2 x 2."""
    moments = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    keys = ("a", "b", "c", "d")
    return TrainingBatch(moments, keys, keys, torch.arange(4) + 100, step=3)


@pytest.fixture
def select_samples() -> Callable[[TrainingBatch, list[int]], TrainingBatch]:
    """The micro-batch of some of the samples."""

    def select(batch: TrainingBatch, rows: list[int]) -> TrainingBatch:
        return replace(
            batch,
            moments=batch.moments[rows],
            captions=tuple(batch.captions[row] for row in rows),
            keys=tuple(batch.keys[row] for row in rows),
            sample_ids=batch.sample_ids[rows],
        )

    return select
