"""Proves that training sees the same global batches, sample by sample in the same order and with the same
captions, with 1, 2 and 4 processes, wherever it was interrupted: by the real loader in real
process groups (`record_batches.py`), and by what the trainer takes out of it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.train_t2i import Config, build_run, fresh_start
from t2i.batch import TrainingBatch
from t2i.config import load_config
from t2i.training.run import find_checkpoint, resume
from t2i.training.trainer import train

REPO = Path(__file__).resolve().parents[2]
STEPS = 40  # of 8 samples: the 240 bundled ones end in step 30
CONFIG = """
base: {repo}/configs/nano.yaml
root: {root}
data_pipeline:
  loader: {{num_workers: 1, window_shards: 2}}
t2i:
  models:
    tr_dit: {{num_layers: 2, width: 16, num_heads: 2, routes: [[1, 1]], adaln_rank: 4}}
  training: {{steps: {steps}, global_batch: 8, micro_batch: 2, precision: fp32}}
"""


def journey(name: str, world_sizes: list[int]) -> str:
    """Stations of these sizes, one after the other, changing at random steps."""
    changes = random.Random(name).sample(range(1, STEPS), len(world_sizes) - 1)
    ends = [0, *sorted(changes), STEPS]
    stations = zip(world_sizes, ends[:-1], ends[1:], strict=True)
    return ":".join([name, *(f"{size},{start},{stop}" for size, start, stop in stations)])


JOURNEYS = {
    "one": [1],
    "two": [2],
    "four": [4],
    "interrupted": [2, 2, 2, 2],
    "moved": [4, 1, 2, 4, 2],
}


def samples(folder: Path, name: str) -> list[tuple[Any, ...]]:
    """(step, sample id, key, caption) in the order of training: by step, then by rank."""
    found = []
    for station, world_size in enumerate(JOURNEYS[name]):
        by_rank = [
            json.loads((folder / f"{name}-{station}-{rank}.json").read_text())
            for rank in range(world_size)
        ]
        rows = [(row[0], rank, row) for rank, rows in enumerate(by_rank) for row in rows]
        for step, _, (_, *parts) in sorted(rows, key=lambda row: row[:2]):
            found += [(step, *sample) for sample in zip(*parts, strict=True)]
    return found


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("order")
    (root / "config.yaml").write_text(CONFIG.format(repo=REPO, root=root, steps=STEPS))
    return root / "config.yaml"


@pytest.fixture(scope="module")
def recorded(config: Path) -> Path:
    script = Path(__file__).with_name("record_batches.py")
    plans = [journey(name, world_sizes) for name, world_sizes in JOURNEYS.items()]
    done = subprocess.run(
        [sys.executable, str(script), str(config), str(config.parent), *plans],
        env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return config.parent


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(JOURNEYS) - {"one"}))
def test_the_batches_are_those_of_one_process(name: str, recorded: Path) -> None:
    straight = samples(recorded, "one")
    assert [sample[:2] for sample in straight] == [(i // 8, i) for i in range(8 * STEPS)]
    assert len({key for _, _, key, _ in straight[:240]}) == 240, "an epoch has each sample once"
    assert samples(recorded, name) == straight


@pytest.mark.slow
def test_the_trainer_takes_each_sample_once(
    config: Path, recorded: Path, process_group: None
) -> None:
    """Stopped after three random steps, and gone on with from its checkpoints."""
    settings = load_config(config, [], Config)
    stage, device = settings.launch.stage(1), torch.device("cpu")
    taken: list[tuple[Any, ...]] = []
    for stop in [*sorted(random.Random(0).sample(range(1, STEPS), 3)), STEPS]:
        saved = find_checkpoint(Path(stage.folder))
        start = resume(saved, ()) if saved else fresh_start(1, stage)
        training = settings.training.model_copy(update={"steps": stop})
        run = build_run(1, stage, training, settings.loader, settings, start, device)

        def batches(step: int, run: Any = run) -> Iterator[TrainingBatch]:
            for batch in run.batches(step):
                rows = zip(batch.sample_ids.tolist(), batch.keys, batch.captions, strict=True)
                taken.extend((batch.step, *row) for row in rows)
                yield batch

        assert train(replace(run, batches=batches))
    assert taken == samples(recorded, "one")
