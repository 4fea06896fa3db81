"""Fixtures of the data pipeline's tests: a real S3 server on loopback, connections on record."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.storage import StorageConfig


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


_connections: list[object] = []


def _record_connections(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect":
        _connections.append(arguments[1])


@pytest.fixture(scope="session")
def all_connections() -> list[object]:
    """The addresses that this process tried to connect to, as the interpreter's audit saw them."""
    sys.addaudithook(_record_connections)  # a hook stays for good, so it is added once
    return _connections


@pytest.fixture
def connections(all_connections: list[object]) -> list[object]:
    """The same, emptied before each test."""
    all_connections.clear()
    return all_connections
