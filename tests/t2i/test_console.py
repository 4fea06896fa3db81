"""Proves that a full disk costs a metrics file whole lines, and the run nothing; and that exit codes
tell what another attempt may not meet."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from t2i.console import run_command


def test_a_line_that_the_disk_refuses_is_left_out_whole(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from t2i.console import MetricsFile\n"
        "file = MetricsFile(Path(sys.argv[1]))\n"
        "file.write({'step': 1})\n"
        "size = file.path.stat().st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))\n"
        "file.write({'step': 2})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))\n"
        "file.write({'step': 3})\n"
    )
    path = tmp_path / "metrics.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3]
    assert f"{path}: a line was not written" in done.stderr


@pytest.mark.parametrize(("error", "code"), [(ValueError, 2), (OSError, 2), (TimeoutError, 1)])
def test_an_error_is_one_line_and_an_exit_code(
    error: type[Exception], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: Sequence[str] | None) -> int:
        raise error("what and why")

    assert run_command(main) == code
    assert capsys.readouterr().err == "error: what and why\n"
