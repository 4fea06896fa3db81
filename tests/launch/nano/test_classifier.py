"""Proves that the classifier's training learns, writes what is loaded, and does nothing when finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from launch.nano.classifier import main, train
from t2i.encoders.shapes_features import load_shapes_features


@pytest.mark.slow
def test_a_few_steps_write_a_classifier_and_its_shares(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = ["--output", str(tmp_path / "c"), "--steps", "2", "--held-out", "8"]
    assert main(command) == 0
    metrics = json.loads((tmp_path / "c" / "metrics.json").read_text())
    assert metrics["num_scenes"] == 8
    assert {name.split(",")[0] for name in metrics} == {
        *("num_scenes", "shape", "color", "size", "pattern", "tone")
    }
    assert load_shapes_features(tmp_path / "c").accuracy == metrics
    caplog.clear()
    assert main(command) == 0
    assert "is finished" in caplog.text


@pytest.mark.slow
def test_a_seed_gives_one_classifier() -> None:
    first, again, other = (train(seed, 1, "cpu").state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
