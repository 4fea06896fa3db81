"""How pictures are gone through: the part of a config that every metric gets, made ready."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from t2i.devices import usable_device
from t2i.evaluation.picture_sets import Policy

if TYPE_CHECKING:
    from t2i.evaluation.evaluation_config import ReadingConfig


@dataclass(frozen=True)
class Context:
    """How to go through pictures.

    Attributes:
        device: where networks run.
        batch_size: pictures that a network gets at a time.
        num_threads: that read pictures.
        policy: what becomes of odd pictures; see `t2i.evaluation.picture_sets.read_batches`.
        cache: folder where rows are remembered; None = nowhere.
    """

    device: torch.device
    batch_size: int
    num_threads: int
    policy: Policy
    cache: Path | None


def make_context(reading: ReadingConfig) -> Context:
    """The context of a config.

    Raises:
        ValueError: there is no such device.
    """
    return Context(
        device=usable_device(reading.device),
        batch_size=reading.batch_size,
        num_threads=reading.num_threads,
        policy=reading.odd_pictures,
        cache=Path(reading.cache) if reading.cache else None,
    )
