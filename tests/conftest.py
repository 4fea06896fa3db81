"""The process group of the tests that train: one for all, because DeepSpeed remembers its first."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    from t2i.training.engine import start_processes, stop_processes

    start_processes(timeout_minutes=1)
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]  # processes that a test starts make groups of their own
    yield
    stop_processes()
