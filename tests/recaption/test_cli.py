"""Proves the command: alone, and as the entry point of a job on a real Ray cluster.

The cluster is started in an empty folder, on free ports, and ended by its own process. The README's
literal `ray job submit recaption` is run by tests/test_readme.py.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_pipeline.outputs.step_output import StepOutput
from recaption.cli import RAY_JOB_VARIABLE, absolute, build_parser, enter_project_folder, main
from t2i.config import REPO_FOLDER
from t2i.console import run_command

SCRIPTS = Path(sys.executable).parent
START_ATTEMPTS, START_SECONDS = 3, 120.0


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster: its job server's address and the folder where it was started."""

    address: str
    folder: Path


def environment(**changes: str) -> dict[str, str]:
    path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        **{"PATH": path, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
        **{"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        **changes,
    }


def free_ports(num: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(num)]
        return [server.getsockname()[1] for server in sockets]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Ray puts sockets there, whose paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="ray-test-", dir="/tmp"))
    try:
        process, address = start_ray(folder)
        yield Cluster(address, folder)
        process.terminate()
        process.wait(timeout=60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def start_ray(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A Ray head and its job server's address; `ray start` itself gives up on a busy machine."""
    for attempt in range(START_ATTEMPTS):
        port, dashboard_port = free_ports(2)
        command = f"ray start --head --block --port {port} --dashboard-port {dashboard_port}"
        command += f" --temp-dir {folder}/{attempt} --num-cpus 2 --object-store-memory 100000000"
        with (folder / "ray.log").open("a") as log:
            process = subprocess.Popen(
                command.split(), cwd=folder, env=environment(), stdout=log, stderr=log
            )
        address = f"http://127.0.0.1:{dashboard_port}"
        if serves_jobs(process, address):
            return process, address
        process.terminate()
        process.wait(timeout=60)
    raise AssertionError((folder / "ray.log").read_text())


def serves_jobs(process: subprocess.Popen[bytes], address: str) -> bool:
    """Wait until a job that does nothing succeeds; False when Ray ends or takes too long."""
    stop_at = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < stop_at:
        if run_job(address, "true").returncode == 0:
            return True
        time.sleep(0.5)
    return False


def run_job(address: str, *command: str) -> subprocess.CompletedProcess[str]:
    """`ray job submit` from another folder than the cluster's."""
    return subprocess.run(
        ["ray", "job", "submit", "--", *command],
        cwd="/",
        env=environment(RAY_ADDRESS=address),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_a_ray_job_captions_the_shards_and_is_done_only_once(
    cluster: Cluster, images: StepOutput, tmp_path: Path
) -> None:
    output = tmp_path / "captions"
    arguments = ["--images", images.url, "--output", str(output)]
    first = run_job(
        cluster.address, "recaption", *arguments, "--set", "data_pipeline.jobs.num_workers=2"
    )
    assert first.returncode == 0, first.stdout + first.stderr
    assert "executor ray" in first.stdout
    assert "relative paths are taken from" in first.stdout
    assert f"of 6 images in {output}" in first.stdout
    captions = StepOutput.open(str(output))
    assert captions.committed() == images.committed()
    assert captions.funnel().reasons[("failed", "undecodable")] == 1
    again = run_job(cluster.address, "recaption", *arguments)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "3 of 3 shards were done before" in again.stdout


@pytest.mark.slow
def test_a_users_mistake_ends_the_ray_job_with_one_line(cluster: Cluster) -> None:
    result = run_job(cluster.address, "recaption", "--images", "/no/such/images")
    assert result.returncode != 0
    assert "error: recaption.job.images: /no/such/images has no finished shards" in result.stdout
    assert "Traceback" not in result.stdout


def test_the_command_runs_in_this_process_and_says_what_it_used(
    images: StepOutput,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--images", "images", "--output", "captions", "--executor", "local"]) == 0
    assert "full scale: --config" in caplog.text
    assert f"{tmp_path}/images, captioner" in caplog.text
    assert f"of 6 images in {tmp_path}/captions" in capsys.readouterr().out
    assert StepOutput.open(str(tmp_path / "captions")).funnel().num_in == 6


def test_a_wrong_model_is_one_line_and_exit_code_2(
    images: StepOutput, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--images", images.url, "--model", "/no/model", "--executor", "local"]
    assert run_command(main, arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: recaption.captioner.path")


def test_as_a_ray_job_the_executor_is_ray_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(RAY_JOB_VARIABLE, "{}")
    missing = ["--images", "/no/images"]
    assert run_command(main, missing) == 2
    assert "executor ray" in caplog.text
    assert run_command(main, [*missing, "--executor", "local"]) == 2
    assert "executor local" in caplog.text


def test_relative_paths_of_a_ray_job_are_the_projects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    enter_project_folder()
    assert Path.cwd() == REPO_FOLDER
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    enter_project_folder()
    assert Path.cwd() == tmp_path


def test_paths_become_absolute_and_s3_addresses_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("a/../b") == f"{tmp_path}/b"
    assert absolute("s3://bucket/a") == "s3://bucket/a"


def test_help_shows_the_literal_ray_command() -> None:
    assert "\n    ray job submit recaption " in build_parser().format_help()
