"""What a network is conditioned on, text or class labels, and what an objective does with it.

Shape suffixes: B samples, N conditions per sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from t2i import rng
from t2i.encoders.text import TextStates

# encoded texts (TR-DiT), or class labels (B,) int64 (SiT)
Condition = TextStates | Tensor


def select(condition: Condition, ids_B: Tensor) -> Condition:
    """The rows ``ids_B`` (int64, may repeat) of a condition, in that order."""
    if isinstance(condition, TextStates):
        return TextStates(condition.states[ids_B], condition.mask[ids_B])
    return condition[ids_B]


def repeat(condition: Condition, size: int) -> Condition:
    """A condition of one row, such as the null condition, for a batch of ``size`` samples."""
    rows = condition if isinstance(condition, Tensor) else condition.mask
    return select(condition, torch.zeros(size, dtype=torch.int64, device=rows.device))


@dataclass(frozen=True)
class ContrastedConditions:
    """The conditions of a micro-batch, and those that their predictions are contrasted with.

    Attributes:
        given: one per sample; those of dropped samples are the null condition already.
        references: conditions of B rows each, whose mean prediction stands for the unconditional
            one: the null condition alone (`repeat`), or N others (`draw_references` says which).
        dropped_B: (B,) bool, which samples lost their condition; None = none.
    """

    given: Condition
    references: tuple[Condition, ...]
    dropped_B: Tensor | None = None


def draw_references(
    pool_size: int, count: int, seed: int, step: int, sample_ids_B: Tensor
) -> Tensor:
    """Which conditions of a pool are the ``count`` references of each sample (MG eq. 23).

    They are distinct and uniform, and depend on the sample's own id alone. The sample's own
    condition may be among them, as it is in the sum over all conditions that they estimate.

    Returns:
        (B, count) int64 in [0, pool_size), on the device of ``sample_ids_B``.

    Raises:
        ValueError: the pool is too small.
    """
    if count > pool_size:
        raise ValueError(f"{count} references asked for, but the pool has {pool_size} conditions")
    words_BP = rng.words(seed, "references", step, sample_ids_B, pool_size)
    return words_BP.argsort(dim=1, stable=True)[:, :count]
