"""Proves when a run saves, and that neither a full disk, SIGTERM nor SIGKILL harms what is saved.

The runs are those of `saving_runs.py`, started on one or two processes.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from t2i.training.checkpoint import MANIFEST, TENSOR_KINDS, newest_checkpoint, whole_checkpoints

HERE = Path(__file__).parent
REPO = HERE.parents[2]


def start(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    whole = [sys.executable, *command]
    return subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=300)


def step_of(run: Path) -> int:
    saved = newest_checkpoint(run / "checkpoints")
    assert saved is not None
    return saved.state.step


def assert_same_bits(first: Path, second: Path) -> None:
    left, right = (newest_checkpoint(run / "checkpoints") for run in (first, second))
    assert left is not None
    assert right is not None
    assert left.state == right.state
    for kind in TENSOR_KINDS:
        for name, tensor in left.tensors(kind).items():
            assert torch.equal(tensor, right.tensors(kind)[name]), (kind, name)


def test_checkpoint_minutes_save_in_between_and_change_nothing_else(
    tmp_path: Path, process_group: None
) -> None:
    from t2i.training.trainer import train

    make_run = runpy.run_path(str(HERE / "tiny_run.py"))["make_run"]
    saved: dict[str, list[str]] = {}
    for name, minutes in (("none", None), ("long", 100.0), ("short", 1e-9)):
        run = make_run(tmp_path / name, 3, 0, 2, "fp32", checkpoint_minutes=minutes)
        names = saved.setdefault(name, [])
        assert train(replace(run, on_checkpoint=lambda path, names=names: names.append(path.name)))
    assert saved["none"] == saved["long"] == ["step-00000003"]
    assert saved["short"] == ["step-00000001", "step-00000002", "step-00000003"]
    assert_same_bits(tmp_path / "none", tmp_path / "short")


def test_milestones_are_saved_and_stay(tmp_path: Path, process_group: None) -> None:
    """Retention would leave 5 and 6 alone, and 3 is not due."""
    from t2i.training.trainer import train

    make_run = runpy.run_path(str(HERE / "tiny_run.py"))["make_run"]
    saving = {"checkpoint_every": 2, "keep_checkpoints": 1, "keep_at": (1, 3)}
    assert train(make_run(tmp_path, 6, 0, 2, "fp32", **saving))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000001", "step-00000003", "step-00000006"]


@pytest.mark.slow
def test_two_processes_agree_when_to_save_and_survive_what_keeps_one_from_it(
    tmp_path: Path, start_two_processes: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = start_two_processes("saving_runs.py", "disturb", str(tmp_path))
    assert done.returncode != 0, "the third run cannot have written its last checkpoint"
    log = done.stderr
    assert "AssertionError" not in log, log

    for step in (2, 3):
        assert f"checkpoint of step {step} not written: {tmp_path}" in log
    assert "File too large" in log
    assert f"snapshot of step 2 not written: {tmp_path}" in log
    snapshots = sorted(path.name for path in (tmp_path / "full" / "snapshots").iterdir())
    assert snapshots == ["step-00000004", "step-00000006"]
    kept = sorted(path.name for path in (tmp_path / "full" / "checkpoints").iterdir())
    assert kept == ["step-00000005", "step-00000006"]
    assert step_of(tmp_path / "full") == 6

    assert step_of(tmp_path / "stopped") == 3  # saves once more after the step that it was in
    assert f"error: {tmp_path}/last/checkpoints: the last checkpoint, of step 3, could" in log
    assert step_of(tmp_path / "last") == 2
    assert not list(tmp_path.glob("*/checkpoints/*.tmp"))


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    done = start(str(HERE / "saving_runs.py"), "kill", str(tmp_path), "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "damaged" not in done.stderr
    steps = [int(text) for text in done.stdout.rpartition(": ")[2].split()]
    assert steps == sorted(set(steps)), "each life did more than the one before"
    assert_same_bits(tmp_path / "straight", tmp_path / "killed")
    left, right = (
        [(snapshot.state, (snapshot.path / MANIFEST).read_text()) for snapshot in snapshots]
        for snapshots in (
            whole_checkpoints(tmp_path / run / "snapshots") for run in ("straight", "killed")
        )
    )
    assert [state.step for state, _ in left] == [10, 8, 6, 4, 2]
    assert left == right
