"""Fixtures of several packages: a process group, a real S3 server on loopback, small checkpoints.

There is one process group for all tests that train, because DeepSpeed remembers its first.
Here, too, is how pytest-xdist shares the tests among its workers; see launch/test.sh.
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.storage.interface import StorageConfig

SLOW_LEFT_OUT = pytest.StashKey[int]()


# They start Ray clusters, and the README and the demo end every cluster of the machine.
WITH_RAY = (
    "tests/test_readme.py",
    "tests/test_nano_end_to_end.py",
    "tests/recaption/test_cli.py",
    "tests/data_pipeline/jobs/test_jobs.py",
)


def group_of(nodeid: str) -> str:
    """Tests of one group run in one worker, one after the other: those of a file share its fixtures."""
    file = nodeid.partition("::")[0]
    return "ray" if file in WITH_RAY else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Workers begin with the groups that have most slow tests: last, one would run alone.

    A long test counts as ten.
    """
    if hasattr(config, "workerinput"):
        weights = Counter[str]()
        for item in items:
            marks = [item.get_closest_marker(name) for name in ("slow", "long")]
            weights[group_of(item.nodeid)] += 10 if marks[1] else 1 if marks[0] else 0
        items.sort(key=lambda item: -weights[group_of(item.nodeid)])


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    if items:
        config, num_slow = items[0].config, sum("slow" in item.keywords for item in items)
        config.stash[SLOW_LEFT_OUT] = config.stash.get(SLOW_LEFT_OUT, 0) + num_slow
        if hasattr(config, "workeroutput"):
            config.workeroutput["slow_left_out"] = config.stash[SLOW_LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Each worker has left out the same."""
    node.config.stash[SLOW_LEFT_OUT] = getattr(node, "workeroutput", {}).get("slow_left_out", 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    num_slow = config.stash.get(SLOW_LEFT_OUT, 0)
    if config.option.markexpr and num_slow:
        terminalreporter.write_line(f"{num_slow} slow test(s) were left out")


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    from t2i.training.engine import start_processes, stop_processes

    start_processes(timeout_minutes=1)
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]  # processes that a test starts make groups of their own
    yield
    stop_processes()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of a moto server, which speaks S3 over HTTP."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_config(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StorageConfig:
    """Settings that reach the server, with credentials set and an empty cache."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return StorageConfig(
        endpoint_url=s3_endpoint, region="us-east-1", cache_folder=str(tmp_path / "cache")
    )


@pytest.fixture
def s3_url(s3_config: StorageConfig) -> str:
    """An address in a new bucket."""
    import boto3

    bucket = f"bucket-{uuid.uuid4().hex}"
    client = boto3.client("s3", endpoint_url=s3_config.endpoint_url, region_name=s3_config.region)
    client.create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/prefix"


class S3Server:
    """S3 over HTTP that can be stopped, also in the middle of a request, and started again."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self.moto = DomainDispatcherApplication(create_backend_app)
        self.port = 0
        self.start()

    def start(self) -> None:
        from werkzeug.serving import make_server

        self.is_up = True
        self.requests: list[str] = []  # "PUT step-00000001/ema.safetensors"
        self.held = ""  # requests whose line contains this wait ...
        self.holding, self.release = threading.Event(), threading.Event()  # ... for the latter
        self.server = make_server("127.0.0.1", self.port, self.answer, threaded=True)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Refuse new connections, and cut those that are open."""
        self.is_up = False
        self.release.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        line = f"{environ['REQUEST_METHOD']} {path.partition('/stage1/')[2] or path}"
        if self.held and self.held in line:
            self.holding.set()
            assert self.release.wait(30)
        if not self.is_up:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionError("the server is down")
        self.requests.append(line)
        return self.moto(environ, start_response)


@pytest.fixture(scope="session")
def one_stoppable_s3() -> S3Server:
    return S3Server()


@pytest.fixture
def stoppable_s3(one_stoppable_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server of S3 that runs, with credentials set; see `S3Server`."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    if not one_stoppable_s3.is_up:
        one_stoppable_s3.start()
    yield one_stoppable_s3
    if one_stoppable_s3.is_up:
        one_stoppable_s3.stop()


@pytest.fixture(scope="session")
def write_checkpoint() -> Callable[..., Path]:
    """A function (folder, step, keep=10, size=3) -> the checkpoint, of ``size`` numbers a tensor."""
    import torch

    from t2i.training import checkpoint

    def write(folder: Path, step: int, keep: int = 10, size: int = 3) -> Path:
        temporary = checkpoint.temporary_folder(folder, step)
        temporary.mkdir(parents=True, exist_ok=True)
        for kind in checkpoint.TENSOR_KINDS:
            tensors = {"layer.weight": torch.full((size,), float(step))}
            checkpoint.write_tensors(temporary, kind, tensors)
        state = checkpoint.TrainingState(step, step, step, 0)
        return checkpoint.commit(temporary, state, "root: x\n", keep)

    return write
