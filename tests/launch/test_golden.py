"""Proves that training computes what it computed before: losses and gradient norms of 30 seeded steps on
the bundled data equal a golden file, and any change of order, draws, sparsity or objective shows.

The run is in fp32 with one process. CPUs add in different orders, so 1e-4 relative is allowed; on
one machine it repeats to the bit. Where a change is meant to change training, write it anew:

    SPARSE_T2I_WRITE_GOLDEN=1 python -m pytest tests/launch/test_golden.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from launch.train_t2i import Config, train_stage
from t2i.config import load_config

REPO = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("golden") / "losses.json"
TOLERANCE = 1e-4
FIELDS = ("loss", "gradient_norm")
CONFIG = """
base: {repo}/configs/nano.yaml
root: {root}
data_pipeline:
  loader: {{num_workers: 0}}
t2i:
  models:
    tr_dit: {{num_layers: 3, width: 32, num_heads: 2, routes: [[1, 1]], adaln_rank: 8}}
  training: {{steps: {steps}, global_batch: 8, micro_batch: 4, warmup_steps: 10, log_every: 1,
             precision: fp32}}
"""
# Each must show within 15 steps: the teacher of a new model has nothing to say at first. "seed" moves all streams, the others one thing each.
CHANGES = (
    "t2i.training.seed=1",
    "data_pipeline.loader.window_shards=1",
    "data_pipeline.loader.caption_dropout=0.5",
    "t2i.training.gamma=0.25",
    "t2i.training.timestep.mean=0.1",
    "t2i.training.objective={name: model_guidance, scale: 1.5}",
)


def train(root: Path, steps: int, *changes: str) -> list[dict[str, float]]:
    """Losses and gradient norms of the golden run, or of a changed one."""
    path = root / "config.yaml"
    path.write_text(CONFIG.format(repo=REPO, root=root, steps=steps))
    config = load_config(path, changes, Config)
    stage, device = config.launch.stage(1), torch.device("cpu")
    assert train_stage(1, stage, config.training, config.loader, config, device) == 0
    lines = (Path(stage.folder) / "metrics.jsonl").read_text().splitlines()
    return [{field: json.loads(line)[field] for field in FIELDS} for line in lines]


def is_golden(found: list[dict[str, float]]) -> bool:
    """Whether the first steps are those of the file."""
    golden = json.loads(GOLDEN.read_text())["steps"]
    return all(
        step == pytest.approx(expected, rel=TOLERANCE)
        for step, expected in zip(found, golden[: len(found)], strict=True)
    )


def test_training_computes_what_it_computed_before(tmp_path: Path, process_group: None) -> None:
    found = train(tmp_path, steps=30)
    if "SPARSE_T2I_WRITE_GOLDEN" in os.environ:
        GOLDEN.write_text(json.dumps({"tolerance": TOLERANCE, "steps": found}, indent=1) + "\n")
    assert len(found) == 30
    assert is_golden(found), found


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_the_golden_file_shows_a_change(change: str, tmp_path: Path, process_group: None) -> None:
    assert not is_golden(train(tmp_path, 15, change))
