"""A micro-batch of small random latents, and tiny runs on two processes."""

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
def start_two_processes() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script beside this file on two processes (CPU, gloo): (name, arguments) -> its end."""

    def start(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        here = Path(__file__).resolve().parent
        environment = {**os.environ, "PYTHONPATH": str(here.parents[2]), "OMP_NUM_THREADS": "1"}
        program = [str(here / "start_ranks.py"), "2", str(here / name)]
        command = [sys.executable, *program, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return start


@pytest.fixture(scope="session")
def launch_tiny_run(
    start_two_processes: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Start `tiny_run.py` on two processes; it takes a folder and plans."""

    def launch(folder: Path, *plans: str) -> subprocess.CompletedProcess[str]:
        return start_two_processes("tiny_run.py", str(folder), *plans)

    return launch
