"""Proves that a hung process ends the run with a line that names it, and what the line says."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from t2i.training.monitoring.watchdog import Heartbeat, Watchdog, describe_hang, read_heartbeat

NOW = 1000.0


def beat(rank: int, phase: str, entered: int, age: float = 0.0) -> Heartbeat:
    return Heartbeat(rank, f"node{rank // 8}", 5, phase, entered, seconds=61.0, time=NOW - age)


def test_who_has_entered_the_fewest_phases_is_behind() -> None:
    beats = [beat(0, "backward", 30), beat(1, "data", 27), beat(2, "backward", 30)]
    behind, line = describe_hang(beats, NOW, timeout=60)
    assert behind == [1]
    assert "rank 1 (node0) is in data of step 5 for 1m01s" in line
    assert "2 rank(s) wait in backward of step 5" in line


def test_who_does_not_answer_is_behind_even_if_it_went_further() -> None:
    beats = [beat(0, "data", 27), beat(1, "agreement", 30, age=70), None]
    behind, line = describe_hang(beats, NOW, timeout=60)
    assert behind == [1, 2]
    assert "rank 1 (node0) gave no sign of life for 1m10s, last in agreement of step 5" in line
    assert "rank 2 has never been heard of" in line


def test_a_collective_that_all_are_in_is_named() -> None:
    _, line = describe_hang([beat(r, "update", 9) for r in range(16)], NOW, timeout=60)
    assert "all 16 ranks are in update of step 5" in line


def test_a_process_that_moves_on_is_left_alone(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path, rank=0, world_size=1, timeout_seconds=0.5, step=3)
    watchdog.start()
    for number in range(20):
        watchdog.enter(number, "data")
        time.sleep(0.05)
    watchdog.close()
    heartbeat = read_heartbeat(tmp_path / "heartbeats" / "rank0.json")
    assert heartbeat is not None
    assert heartbeat.phase == "data"
    assert heartbeat.entered > 10


@pytest.mark.slow
def test_a_rank_that_hangs_in_its_data_ends_both_processes_and_is_named(
    tmp_path: Path, launch_tiny_run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = launch_tiny_run(tmp_path, "hung:9:0:2:fp32:tr_dit:hang@2")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines
    for line in lines:
        assert "is in data of step 2" in line
        assert "rank 1 " in line
        assert "rank 0" not in line
    stack = (tmp_path / "hung" / "heartbeats" / "rank1.stack").read_text()
    assert "in hang" in stack
