"""An S3 bucket as a storage: objects carry ``IfNoneMatch="*"``, files are cached on the local disk."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.storage.cache import evict, touch
from data_pipeline.storage.interface import LOCK_PREFIX, SCRATCH, StorageConfig, whole

NUM_LOCKS = 64
MAX_CONNECTIONS = 32


@dataclass(frozen=True)
class S3Storage:
    """Objects under a prefix of a bucket. Holds no connection, so it can be sent to workers."""

    bucket: str
    prefix: str
    config: StorageConfig

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def _client(self) -> Any:
        return _s3_client(self.config, os.getpid())

    @property
    def _transfer(self) -> Any:
        from boto3.s3.transfer import TransferConfig

        threads = self.config.transfer_threads
        return TransferConfig(max_concurrency=threads, use_threads=threads > 1)

    def _address(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + key}

    def get(self, key: str) -> bytes:
        return self._read(key)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        span = f"bytes={offset}-{offset + length - 1}"
        return whole(self._read(key, Range=span), length, f"{self.url}/{key}", offset)

    def put(self, key: str, data: bytes) -> None:
        with self._errors_named(key):
            self._client.put_object(**self._address(key), Body=data)

    def put_file(self, key: str, path: Path) -> None:
        self._client.upload_file(str(path), **self._address(key), Config=self._transfer)

    def get_file(self, key: str, path: Path) -> None:
        with self._errors_named(key):
            self._client.download_file(**self._address(key), Filename=path, Config=self._transfer)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        for _ in range(self.config.max_attempts):
            try:
                self._client.put_object(**self._address(key), Body=data, IfNoneMatch="*")
                return True
            except self._client.exceptions.ClientError as error:
                code = _error_code(error)
                if code == "412":
                    # boto3 may have repeated a request of ours whose answer was lost
                    return self.get(key) == data
                if code != "409":  # 409: two at once, neither stored for certain
                    raise
        raise OSError(f"{self.url}/{key}: writers kept colliding; try again")

    def list(self, prefix: str = "") -> list[str]:
        return sorted(self.versions(prefix))

    def versions(self, prefix: str = "") -> dict[str, str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.prefix + prefix
        )
        entries = (entry for page in pages for entry in page.get("Contents", ()))
        start = len(self.prefix)
        return {entry["Key"][start:]: f"{entry['Size']}-{entry['ETag']}" for entry in entries}

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except FileNotFoundError:
            return False
        return True

    def size(self, key: str) -> int:
        with self._errors_named(key):
            return self._client.head_object(**self._address(key))["ContentLength"]

    def delete(self, key: str) -> None:
        self._client.delete_object(**self._address(key))

    def local(self, key: str, version: str = "") -> Path:
        cache = Path(self.config.cache_folder).expanduser() / "objects"
        path = cache / self.bucket / (self.prefix + key)
        if version:
            path = path.with_name(f"{path.name}@{zlib.crc32(version.encode()):08x}")
        if not touch(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock_name = f"{LOCK_PREFIX}{zlib.crc32(str(path).encode()) % NUM_LOCKS}"
            with (self.scratch() / lock_name).open("w") as lock:  # one download per machine
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not touch(path):
                    self._download(key, path)
                    evict(cache, self.config.cache_gigabytes * 1e9, path)
        return path

    def scratch(self) -> Path:
        folder = Path(self.config.cache_folder).expanduser() / SCRATCH
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _read(self, key: str, **options: str) -> bytes:
        """An object's content. boto3 repeats requests that fail, but no answers that break off."""
        from botocore.exceptions import (
            IncompleteReadError,
            ReadTimeoutError,
            ResponseStreamingError,
        )

        for attempt in range(self.config.max_attempts):
            try:
                with self._errors_named(key):
                    return self._client.get_object(**self._address(key), **options)["Body"].read()
            except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                if attempt + 1 == self.config.max_attempts:
                    raise
                time.sleep(min(0.1 * 4**attempt, 20))
        raise AssertionError("the last attempt returns or raises")

    def _download(self, key: str, path: Path) -> None:
        handle, aside = tempfile.mkstemp(dir=self.scratch())
        os.close(handle)
        try:
            self.get_file(key, Path(aside))
            os.replace(aside, path)
        finally:
            Path(aside).unlink(missing_ok=True)

    @contextmanager
    def _errors_named(self, key: str) -> Iterator[None]:
        try:
            yield
        except self._client.exceptions.ClientError as error:
            if _error_code(error) == "404":
                raise FileNotFoundError(f"{self.url}/{key}: no such object") from None
            if _error_code(error) == "403":
                raise PermissionError(errno.EACCES, "not allowed", f"{self.url}/{key}") from error
            if _error_code(error) == "416":
                raise ValueError(f"{self.url}/{key}: ends before the range asked for") from None
            raise


@functools.lru_cache(maxsize=16)
def _s3_client(config: StorageConfig, process: int) -> Any:
    """One client per settings and process (connections do not survive a fork)."""
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=config.endpoint_url,
        region_name=config.region,
        config=Config(
            retries={"max_attempts": config.max_attempts, "mode": "standard"},
            connect_timeout=config.timeout_seconds,
            read_timeout=config.timeout_seconds,
            max_pool_connections=MAX_CONNECTIONS,
        ),
    )


def _error_code(error: Any) -> str:
    return str(error.response["ResponseMetadata"]["HTTPStatusCode"])
