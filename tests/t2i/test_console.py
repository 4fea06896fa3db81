"""Proves what progress shows on a terminal and in a log file; that a full disk costs a metrics file
whole lines, and the run nothing; and that exit codes tell what another attempt may not meet."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from t2i import console
from t2i.console import progress, run_command


def test_a_log_file_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_PLAIN_LINES", 0.2)
    with progress("shapes", 100, "images", initial=40) as bar:
        for number in range(20):
            time.sleep(0.025)
            bar.update(2, {"loss": number / 3, "failed": 12_345_678} if number % 2 else None)
    *lines, last = capsys.readouterr().err.splitlines()
    fields = r"loss [\d.]+, failed 12345678"
    assert 1 <= len(lines) <= 3
    for line in lines:
        assert re.fullmatch(
            rf"shapes: \d+/100 \(\d+ %\), \d.* images/s, ETA \d\.\ds, {fields}", line
        )
    assert re.fullmatch(
        r"shapes: 80/100 \(80 %\), \d.* images/s, in \d\.\ds, loss 6\.333, failed 12345678", last
    )


def test_a_short_job_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("jobs", None, "items") as bar:
        bar.update(3)
        bar.update(-1)
    assert re.fullmatch(r"jobs: 2, \S+ items/s, in 0\.0s\n", capsys.readouterr().err)


def test_what_remains_is_reckoned_from_what_this_process_did() -> None:
    with progress("run", 100, "steps", initial=90) as bar:
        assert bar.remaining_seconds is None
        time.sleep(0.2)
        bar.update(5)
        assert bar.remaining_seconds == pytest.approx(0.2, rel=0.2)
        assert bar.rate == pytest.approx(25, rel=0.2)
    with progress("run", None, "steps") as bar:
        bar.update(5)
        assert bar.remaining_seconds is None


@pytest.mark.parametrize("columns", [90, 0])
def test_a_terminal_gets_a_bar_if_it_has_any_columns(columns: int) -> None:
    code = (
        "from t2i.console import progress\n"
        "with progress('shapes', 4, 'images', initial=1) as bar:\n"
        "    bar.update(2, {'loss': 0.5})\n"
    )
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    subprocess.run([sys.executable, "-c", code], stderr=terminal, check=True)
    os.close(terminal)
    shown = os.read(reader, 10_000).decode()
    os.close(reader)
    if columns:
        *_, last = shown.strip().split("\r")
        assert re.fullmatch(
            r"shapes:  75%\|\S+ +\| 3/4 \[00:00<00:00, .* images/s, loss 0\.5\]", last
        )
        assert max(map(len, shown.split("\r"))) <= columns
    else:
        assert re.fullmatch(r"shapes: 3/4 \(75 %\), \S+ images/s, in 0\.0s, loss 0\.5\r\n", shown)


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
