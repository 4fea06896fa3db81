"""Proves which words are swapped, and that the excess of the loss tells a network that reads them from
one that does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t2i.batch import TrainingBatch
from t2i.shapes import PLACES
from t2i.training.monitoring.held_out import held_out_losses
from t2i.training.monitoring.swapped_words import swap_words, swapped_word_excess
from t2i.training.objectives.flow_matching import Losses

SHAPES = ("circle", "square", "cross")
CAPTIONS = ("a circle", "Square, red", "red", "", "a cross and a circle")


def test_each_word_becomes_the_next_and_the_last_the_first() -> None:
    swapped = [swap_words(caption, SHAPES) for caption in CAPTIONS]
    assert swapped == ["a square", "Cross, red", "red", "", "a circle and a square"]


def test_longer_places_come_first_and_parts_of_words_stay() -> None:
    assert swap_words("at the top left, on the left", PLACES) == "at the top, on the center"
    assert swap_words("a leftover circle", PLACES) == "a leftover circle"


class Reader(nn.Module):
    """Loses 1 on each sample, and 2 where the caption is not of the right shape (if it reads)."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.reads = reads

    def forward(self, captions: tuple[str, ...]) -> Tensor:
        wrong = [self.reads and now != right for now, right in zip(captions, CAPTIONS, strict=True)]
        return 1.0 + torch.tensor(wrong)


@pytest.mark.parametrize(("reads", "expected"), [(True, 1.0), (False, 0.0)])
def test_the_excess_is_that_of_the_samples_with_such_a_word(
    reads: bool, expected: float, process_group: None
) -> None:
    def validation_loss(network: Any, batch: Any, condition: Any, timestep: float) -> Losses:
        return Losses(network(condition), torch.full((len(condition),), timestep))

    batch = TrainingBatch(torch.zeros(5, 8, 2, 2), CAPTIONS, ("",) * 5, torch.arange(5), step=0)
    network, times = Reader(reads), (0.25, 0.75)
    objective: Any = SimpleNamespace(validation_loss=validation_loss)
    conditioner: Any = SimpleNamespace(given=lambda batch: batch.captions)
    own_TB = held_out_losses(network, objective, conditioner, batch, times)
    assert torch.equal(own_TB, torch.ones(2, 5, dtype=torch.float64))
    excess = swapped_word_excess(
        network,
        objective,
        conditioner,
        [batch, batch],
        [own_TB, own_TB],
        {"shape": SHAPES, "size": ("small", "large")},
        times,
    )
    assert excess == {"shape": expected, "size": None}
