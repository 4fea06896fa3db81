"""Proves the loss sums by time and that a resumed run's metrics hold each step once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from t2i.training.metrics import LossSums, drop_lines_after, mean_losses


def test_losses_are_averaged_by_eighths_of_time() -> None:
    sums = LossSums(torch.device("cpu"))
    sums.add(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.1]))
    sums.add(torch.tensor([8.0]), torch.tensor([1.0]))
    mean, by_time = mean_losses(sums.sums_2T)
    assert mean == pytest.approx(4.0)
    assert by_time == [2.0, *[None] * 6, 8.0]


def test_lines_after_the_step_of_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) + "\n" for step in range(1, 6)]
    path.write_text("".join(lines) + '{"step": 6, "lo')
    drop_lines_after(path, 3)
    assert path.read_text() == "".join(lines[:3])
    drop_lines_after(tmp_path / "absent.jsonl", 3)
