"""A micro-batch of small random latents, and tiny runs under the real deepspeed launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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


@pytest.fixture(scope="session")
def launch_tiny_run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Start `tiny_run.py` on two processes (CPU, gloo); it takes a folder and plans."""

    def launch(folder: Path, *plans: str) -> subprocess.CompletedProcess[str]:
        program = Path(__file__).with_name("tiny_run.py")
        repository = str(Path(__file__).resolve().parents[3])
        environment = {**os.environ, "PYTHONPATH": repository, "OMP_NUM_THREADS": "1"}
        launcher = str(Path(sys.executable).with_name("deepspeed"))
        options = ["--num_gpus", "2", "--master_port", str(20_000 + os.getpid() % 20_000)]
        command = [sys.executable, launcher, *options, str(program), str(folder), *plans]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return launch
