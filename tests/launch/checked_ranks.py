"""One of two processes that check their environment; started by `test_environment`.

    python tests/launch/checked_ranks.py FOLDER     with RANK, WORLD_SIZE ... in the environment

Prints what each case of `CASES` ended with on this rank, as a line of JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.loading.loader_config import DatasetConfig, LoaderConfig
from data_pipeline.storage.interface import StorageConfig
from launch.config import LaunchConfig
from launch.environment import check_environment
from t2i.config import ASSETS_FOLDER, ConfigError
from t2i.training.engine import start_processes, stop_processes
from t2i.training.training_config import TrainingConfig

FOLDER, RANK = Path(sys.argv[1]), int(os.environ["RANK"])
DATA = str(ASSETS_FOLDER / "nano" / "data" / "latents")
DEFAULTS: dict[str, Any] = {
    "settings": "t2i: {training: {gamma: 0.5}}",
    "folder": FOLDER / "run",
    "num_parameters": 1000,
    "training": TrainingConfig(),
    "loader": LoaderConfig(datasets=(DatasetConfig(path=DATA),)),
    "storage": StorageConfig(
        endpoint_url="http://127.0.0.1:9", region="us-east-1", max_attempts=1, timeout_seconds=2
    ),
    "launch": LaunchConfig(),
}


def with_data(path: str) -> dict[str, Any]:
    return {"loader": LoaderConfig(datasets=(DatasetConfig(path=path),))}


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "all is well": dict,
    "other settings": lambda: {"settings": f"t2i: {{training: {{gamma: 0.{5 + RANK}}}}}"},
    "folder of its own": lambda: {"folder": FOLDER / f"run{RANK}"},
    "file in place of a folder": lambda: {"folder": FOLDER / "file" if RANK else FOLDER / "run"},
    "uneven batch": lambda: {"training": TrainingConfig(global_batch=5, micro_batch=1)},
    "no data on one node": lambda: with_data(str(FOLDER / "nothing") if RANK else DATA),
    "other data on one node": lambda: with_data(str(FOLDER / f"latents{RANK}")),
    "no s3": lambda: with_data("s3://bucket/latents"),
    "little disk": lambda: {"launch": LaunchConfig(min_free_disk_gb=1e9)},
    "big checkpoints": lambda: {"num_parameters": 10**15},
    "many snapshots": lambda: {
        "num_parameters": 10**9,
        "training": TrainingConfig(power_averages=(0.05, 0.1), snapshot_every=100),
    },
    "little disk that is allowed": lambda: {
        "launch": LaunchConfig(min_free_disk_gb=1e9, little_disk="warn")
    },
}


def outcome(case: Callable[[], dict[str, Any]]) -> object:
    try:
        checked = check_environment(**{**DEFAULTS, **case()})
        return [*checked.warnings]
    except ConfigError as error:
        return str(error)
    except SystemExit as stop:
        return stop.code


if __name__ == "__main__":
    (FOLDER / "file").touch()
    copied = shutil.copytree(DATA, FOLDER / f"latents{RANK}", dirs_exist_ok=True)
    if RANK:
        sorted(copied.glob("manifest/*"))[-1].unlink()  # what a shard is committed by
    start_processes(timeout_minutes=1)
    print(json.dumps({name: outcome(case) for name, case in CASES.items()}))
    stop_processes()
