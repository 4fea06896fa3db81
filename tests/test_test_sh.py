"""Proves what launch/test.sh promises: help, the tests that --quick leaves out are counted, and workers
share them by group."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
TEST_SH = REPO / "launch" / "test.sh"


def test_help_teaches() -> None:
    done = subprocess.run(["bash", str(TEST_SH), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "bash launch/test.sh --quick" in done.stdout
    assert "set -e" not in done.stdout


def test_slow_tests_that_are_left_out_are_counted_once() -> None:
    """Though each of the two workers leaves them out."""
    file = "tests/launch/test_cluster.py"
    num_slow = (REPO / file).read_text().count("@pytest.mark.slow\n")
    options = ["-n", "2", "--dist", "loadscope", "-m", "not slow", "-k", "parse or slow"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, file], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert re.search(rf"^{num_slow} slow test", done.stdout, re.MULTILINE), done.stdout
    assert "2 passed" in done.stdout


def test_the_default_leaves_out_long_tests_and_continuous_integration_runs_them() -> None:
    options = ["-n", "2", "-m", "not long", "--collect-only", "tests/launch/test_kills.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options], cwd=REPO, capture_output=True, text=True
    )
    assert "1/2 tests collected (1 deselected)" in done.stdout, done.stdout
    assert 'arguments+=(-m "not long")' in TEST_SH.read_text()
    assert "launch/test.sh --all" in (REPO / ".ci" / "run").read_text()


def test_whatever_starts_ray_is_one_group() -> None:
    group_of = runpy.run_path(str(REPO / "tests" / "conftest.py"))["group_of"]
    files = set(REPO.glob("tests/**/test_*.py")) - {Path(__file__).resolve()}
    clusters = {file for file in files if starts_ray(file.read_text())}
    assert len(clusters) == 4
    assert {group_of(f"{path.relative_to(REPO)}::test_x[1]") for path in clusters} == {"ray"}
    assert group_of("tests/test_trust.py::test_x") == "tests/test_trust.py"


def starts_ray(text: str) -> bool:
    return any(sign in text for sign in ("ray start --", "ray.init(", "ray stop", "launch/demo.sh"))
