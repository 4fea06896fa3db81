"""Proves that a process alone stays alone, whatever a launcher left in its environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from t2i.devices import usable_device

ASK = """
import json, os
from t2i.devices import leave_group, process_state
before = dict(os.environ)
state = process_state()
leave_group()
print(json.dumps([state.num_processes, state.is_main_process, dict(os.environ) == before]))
"""


@pytest.mark.parametrize("left", [{}, {"LOCAL_RANK": "0", "WORLD_SIZE": "1"}])
def test_a_process_alone_joins_nothing_and_leaves_its_environment(left: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if "RANK" not in name}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**environment, **left},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1, True, True]


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="--device nothing cannot be used here"):
        usable_device("nothing")
