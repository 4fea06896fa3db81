"""Proves that an outage of a real S3 server is waited for while shards are read, by a line of warning
and up to a limit, and that what another attempt would meet again is not tried again."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from data_pipeline.loader import make_loader
from data_pipeline.loading.loader_config import LoaderConfig
from data_pipeline.storage import outages
from data_pipeline.storage.interface import StorageConfig
from data_pipeline.storage.outages import is_outage, outlast
from data_pipeline.storage.stores import open_storage
from t2i.batch import TrainingBatch

Writer = Callable[..., list[str]]
DOWN = EndpointConnectionError(endpoint_url="http://s3")


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    log = lambda text, *parts: lines.append(text % parts)  # noqa: E731
    monkeypatch.setattr(outages.logger, "warning", log)
    return lines


@pytest.fixture
def remote(stoppable_s3: Any, tmp_path: Path) -> tuple[str, StorageConfig]:
    """(an address in a new bucket, settings without patience of boto's own)."""
    storage = StorageConfig(
        endpoint_url=f"http://127.0.0.1:{stoppable_s3.port}",
        region="us-east-1",
        max_attempts=1,
        timeout_seconds=1,  # a worker that was forked while the server was up keeps its socket open
        cache_folder=str(tmp_path / "cache"),
    )
    bucket = f"bucket-{uuid.uuid4().hex}"
    boto3.client("s3", endpoint_url=storage.endpoint_url, region_name=storage.region).create_bucket(
        Bucket=bucket
    )
    return f"s3://{bucket}/latents", storage


def loader_of(remote: tuple[str, StorageConfig], **changes: object) -> Any:
    url, storage = remote
    values = {"datasets": [{"path": url}], "window_shards": 1, **changes}
    sizes = {"seed": 5, "rank": 0, "world_size": 1, "global_batch": 4, "micro_batch": 4}
    config = LoaderConfig.model_validate(values)
    return make_loader(config, **sizes, start_step=0, storage=storage)


def keys(batches: list[TrainingBatch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def test_reading_goes_on_after_an_outage(
    remote: tuple[str, StorageConfig],
    stoppable_s3: Any,
    write_latents: Writer,
    monkeypatch: pytest.MonkeyPatch,
    warnings: list[str],
) -> None:
    monkeypatch.setattr(outages, "FIRST_PAUSE", 0.1)
    all_keys = write_latents(remote[0], [4, 4, 4], storage=remote[1])
    found = iter(loader_of(remote, num_workers=0))
    batches = [next(found)]
    stoppable_s3.stop()
    again = threading.Timer(1.0, stoppable_s3.start)
    again.start()
    batches += islice(found, 2)
    again.join()
    assert sorted(keys(batches)) == all_keys
    assert len(warnings) == 1, "at most one a minute"
    assert warnings[0].startswith(f"{remote[0]}/shards/")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_outage_longer_than_the_limit_ends_the_run_with_one_line(
    remote: tuple[str, StorageConfig], stoppable_s3: Any, write_latents: Writer, num_workers: int
) -> None:
    write_latents(remote[0], [4, 4, 4], storage=remote[1])
    found = iter(loader_of(remote, num_workers=num_workers, prefetch=1, retry_minutes=0))
    next(found)
    stoppable_s3.stop()
    with pytest.raises(TimeoutError, match="retry_minutes") as caught:
        list(islice(found, 3))
    assert str(caught.value).startswith(f"{remote[0]}/shards/")
    assert "\n" not in str(caught.value)


def test_pauses_grow_and_warnings_are_a_minute_apart(
    monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    now, pauses = [0.0], []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(outages.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(outages.time, "sleep", sleep)

    def read() -> None:
        raise DOWN

    with pytest.raises(TimeoutError, match="s3://b/k: not reached for 4m03s"):
        outlast(read, "s3://b/k", minutes=5)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert len(warnings) == 4


def client_error(status: int, code: str) -> ClientError:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "GetObject")


def test_only_what_may_pass_is_an_outage(remote: tuple[str, StorageConfig]) -> None:
    passing = [(500, "InternalError"), (503, "SlowDown"), (429, "X"), (400, "RequestTimeout")]
    assert all(is_outage(client_error(*answer)) for answer in passing)
    assert is_outage(DOWN)
    lasting = [(404, "NoSuchKey"), (403, "AccessDenied"), (400, "InvalidArgument")]
    assert not any(is_outage(client_error(*answer)) for answer in lasting)
    with pytest.raises(FileNotFoundError) as missing:
        open_storage(*remote).get("nothing")
    assert not is_outage(missing.value)
    assert not is_outage(ValueError("bad content"))
