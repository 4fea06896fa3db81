"""The processes of a run meet, or say why they cannot, each in a process of its own. (Gathering and
ZeRO: test_trainer.)"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
PROGRAM = """
import torch
from t2i.console import run_command
from t2i.training.engine import start_processes, stop_processes

def main(argv):
    start_processes(timeout_minutes=1)
    print("world size", torch.distributed.get_world_size())
    stop_processes()
    return 0

raise SystemExit(run_command(main))
"""


def start(**launcher: str) -> subprocess.CompletedProcess[str]:
    """Start processes in an environment that holds what a launcher would set."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    environment = {**inherited, **launcher, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_single_process_is_a_group_of_one() -> None:
    done = start()
    assert done.returncode == 0, done.stderr
    assert "world size 1" in done.stdout


def test_a_taken_port_is_named_with_the_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        done = start(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **place)
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr
    assert "--master_port" in done.stderr
