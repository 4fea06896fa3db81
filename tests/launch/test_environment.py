"""Proves that a start on two processes is refused by one line that names rank, reason and way out, on the
first process alone, and that nothing is left in the run folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.environment import code_hash

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checked")


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> list[dict[str, Any]]:
    """What each rank of two real processes ended with, by case."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    secrets = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    processes = []
    for rank in ("0", "1"):
        # each is the first process of its node, so that each looks at the data
        own = {"RANK": rank, "LOCAL_RANK": "0", "MASTER_PORT": port, "PYTHONPATH": str(REPO)}
        processes.append(
            subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("checked_ranks.py")), str(folder)],
                env={**os.environ, **common, **secrets, **own, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    texts = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    return [json.loads(output.splitlines()[-1]) for output, _ in texts]


def test_nothing_is_said_when_all_is_well(outcomes: list[dict[str, Any]], folder: Path) -> None:
    assert [of_rank["all is well"] for of_rank in outcomes] == [[], []]
    assert list((folder / "run").iterdir()) == []
    assert list((folder / "run0").iterdir()) == list((folder / "run1").iterdir()) == []


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("other settings", ("rank 1 (", "t2i.training.gamma is 0.6, but 0.5 on rank 0", "command")),
        ("folder of its own", ("rank 1 (", "run1 is not the folder", "file system that all nodes")),
        ("file in place of a folder", ("rank 1 (", "file cannot be written", "choose another")),
        ("uneven batch", ("global_batch 5 cannot be divided among 2 processes",)),
        ("no data on one node", ("rank 1 (", "nothing cannot be read", "where all nodes see it")),
        (
            "other data on one node",
            (
                "rank 1 (",
                "latents1 has",
                "shards (",
                "but 240 samples in",
                "give all nodes the same",
            ),
        ),
        ("no s3", ("rank 0 (", "s3://bucket/latents cannot be read", "credentials", "(and 1 more")),
        ("little disk", ("launch.train.min_free_disk_gb", "GB free", "little_disk to warn")),
        (
            "many snapshots",
            ("checkpoints of 24.0 GB each and 16000.0 GB of snapshots ask", "raise snapshot_every"),
        ),
        ("big checkpoints", ("checkpoints of 16000000.0 GB each", "keep_checkpoints")),
    ],
)
def test_one_line_on_the_first_process(
    case: str, parts: tuple[str, ...], outcomes: list[dict[str, Any]]
) -> None:
    line, code = outcomes[0][case], outcomes[1][case]
    assert all(part in line for part in parts), line
    assert "\n" not in line
    assert code == 2


def test_little_disk_may_be_a_warning(outcomes: list[dict[str, Any]]) -> None:
    (warning,) = outcomes[0]["little disk that is allowed"]
    assert "GB free" in warning


def test_the_code_is_known_by_its_content() -> None:
    assert code_hash() == code_hash()
    assert len(code_hash()) == 12
