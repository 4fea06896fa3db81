"""Proves the selection of conditions, and that dropping and drawing them follow their ratios."""

from __future__ import annotations

import pytest
import torch

from t2i.encoders.text import TextStates
from t2i.training.conditions import draw_references, repeat, select


def make_text() -> TextStates:
    mask = torch.tensor([[True, False], [True, True], [True, False]])
    return TextStates(torch.arange(12.0).reshape(3, 2, 2), mask)


def test_text_and_labels_are_selected_by_row() -> None:
    text = select(make_text(), torch.tensor([2, 0, 2]))
    assert isinstance(text, TextStates)
    assert text.states[:, 0, 0].tolist() == [8, 0, 8]
    assert text.mask[:, 1].tolist() == [False, False, False]
    labels = select(torch.tensor([5, 6, 7]), torch.tensor([1, 1]))
    assert isinstance(labels, torch.Tensor)
    assert labels.tolist() == [6, 6]


def test_a_null_condition_of_one_row_serves_a_batch() -> None:
    null = repeat(select(make_text(), torch.tensor([1])), 4)
    assert isinstance(null, TextStates)
    assert null.states.shape == (4, 2, 2)
    assert (null.states == make_text().states[1]).all()


def test_references_are_distinct_uniform_and_drawn_by_sample() -> None:
    ids = torch.arange(5_000)
    rows = draw_references(10, 4, seed=0, step=2, sample_ids_B=ids)
    assert rows.shape == (5_000, 4)
    assert (rows.sort(dim=1).values.diff(dim=1) > 0).all(), "distinct"
    counts = torch.bincount(rows.flatten())
    # each is drawn by 40 % of the samples: a standard deviation of 35
    assert counts.tolist() == pytest.approx([2000] * 10, abs=150)
    alone = draw_references(10, 4, seed=0, step=2, sample_ids_B=ids[7:8])
    assert alone.tolist() == [rows[7].tolist()]


def test_more_references_than_conditions_are_refused() -> None:
    with pytest.raises(ValueError, match="3 references asked for, but the pool has 2"):
        draw_references(2, 3, seed=0, step=0, sample_ids_B=torch.arange(1))
