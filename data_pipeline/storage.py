"""Where data lies: a local folder or an S3 bucket behind one small interface.

    storage = open_storage("outputs/nano/images")
    storage = open_storage("s3://bucket/images", StorageConfig(endpoint_url="http://localhost:9000"))

A key is a relative path with "/" in it. Whatever is stored appears whole or not at all, and
`put_if_absent` has one winner among any number of writers: local files are written aside and
linked into place, S3 objects carry ``IfNoneMatch="*"``. boto3 is imported for s3:// only.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from data_pipeline.object_cache import evict, touch
from t2i.config import Section

SCRATCH = ".incomplete"
STALE_SECONDS = 24 * 3600.0
LOCK_PREFIX = "lock-"
NUM_LOCKS = 64
MAX_CONNECTIONS = 32


class StorageConfig(Section):
    """Settings of s3:// storages (local folders need none). Credentials: as boto3 finds them."""

    endpoint_url: str | None = None
    region: str | None = None
    max_attempts: int = Field(default=5, ge=1)
    timeout_seconds: float = Field(default=60.0, gt=0)
    transfer_threads: int = Field(
        default=10, ge=1, description="parallel requests of one file; 1 = in the caller's thread"
    )
    cache_folder: str = "~/.cache/sparse-t2i"
    cache_gigabytes: float = Field(default=50.0, gt=0)


class Storage(Protocol):
    """Bytes by key. Missing keys raise FileNotFoundError with the full address."""

    @property
    def url(self) -> str:
        """The address that `open_storage` opens again."""

    def get(self, key: str) -> bytes: ...

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``; ValueError when the object ends before."""

    def put(self, key: str, data: bytes) -> None:
        """Store or replace, atomically."""

    def put_file(self, key: str, path: Path) -> None:
        """Store or replace with a copy of the file at ``path``, atomically."""

    def get_file(self, key: str, path: Path) -> None:
        """Copy to a new file at ``path``; cut short there when it fails midway."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """True: stored by this call. False: the key was there; nothing was changed."""

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys that start with ``prefix`` (of any depth)."""

    def versions(self, prefix: str = "") -> dict[str, str]:
        """The same keys, each with a text that differs when the content was replaced."""

    def exists(self, key: str) -> bool: ...

    def size(self, key: str) -> int:
        """Bytes."""

    def delete(self, key: str) -> None:
        """Remove; a key that is not there is no error."""

    def local(self, key: str, version: str = "") -> Path:
        """A local file with the content: the file itself, or a cached copy of the object.

        A cached copy is kept by key and ``version``: a key whose content may be replaced needs the
        latter, from `versions`.
        """

    def scratch(self) -> Path:
        """A local folder for files in the making; its leftovers are swept after a day."""


def open_storage(url: str, config: StorageConfig | None = None) -> Storage:
    """The storage at ``url``: a folder's path or ``s3://bucket/prefix``. Nothing is touched yet.

    Raises:
        ValueError: another scheme, or an s3 address without a bucket.
    """
    if "://" not in url:
        return LocalStorage(Path(url).expanduser())
    scheme, _, rest = url.partition("://")
    if scheme != "s3":
        raise ValueError(
            f"{url}: unknown storage '{scheme}://'; use a folder or s3://bucket/prefix"
        )
    bucket, _, prefix = rest.strip("/").partition("/")
    if not bucket:
        raise ValueError(f"{url}: no bucket; expected s3://bucket/prefix")
    return S3Storage(bucket, f"{prefix}/" if prefix else "", config or StorageConfig())


@dataclass(frozen=True)
class LocalStorage:
    """A folder; keys are paths in it."""

    folder: Path

    @property
    def url(self) -> str:
        return str(self.folder)

    def get(self, key: str) -> bytes:
        return (self.folder / key).read_bytes()

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        with (self.folder / key).open("rb") as file:
            file.seek(offset)
            return _whole(file.read(length), length, f"{self.folder / key}", offset)

    def put(self, key: str, data: bytes) -> None:
        with self._aside(key) as (aside, target):
            _write_through(aside, data)
            aside.replace(target)

    def put_file(self, key: str, path: Path) -> None:
        with self._aside(key) as (aside, target):
            shutil.copyfile(path, aside)
            aside.replace(target)

    def get_file(self, key: str, path: Path) -> None:
        shutil.copyfile(self.folder / key, path)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._aside(key) as (aside, target):
            _write_through(aside, data)
            try:
                os.link(aside, target)
            except FileExistsError:
                return False
        return True

    def list(self, prefix: str = "") -> list[str]:
        start = (self.folder / prefix.rpartition("/")[0]).resolve()
        root = self.folder.resolve()
        keys = []
        for folder, folders, files in os.walk(start):
            folders[:] = [name for name in folders if name != SCRATCH]
            keys += [(Path(folder) / name).relative_to(root).as_posix() for name in files]
        return sorted(key for key in keys if key.startswith(prefix))

    def versions(self, prefix: str = "") -> dict[str, str]:
        stats = {key: (self.folder / key).stat() for key in self.list(prefix)}
        return {key: f"{stat.st_size}-{stat.st_mtime_ns}" for key, stat in stats.items()}

    def exists(self, key: str) -> bool:
        return (self.folder / key).is_file()

    def size(self, key: str) -> int:
        return (self.folder / key).stat().st_size

    def delete(self, key: str) -> None:
        (self.folder / key).unlink(missing_ok=True)

    def local(self, key: str, version: str = "") -> Path:
        path = self.folder / key
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        return path

    def scratch(self) -> Path:
        folder = self.folder / SCRATCH
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def _aside(self, key: str) -> Iterator[tuple[Path, Path]]:
        """(a file to write on the same disk, its final place); the former is gone afterwards."""
        target = self.folder / key
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.scratch())
        os.fchmod(handle, 0o644)
        os.close(handle)
        try:
            yield Path(name), target
        finally:
            Path(name).unlink(missing_ok=True)


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
        return _whole(self._read(key, Range=span), length, f"{self.url}/{key}", offset)

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


def sweep_scratch(storage: Storage) -> None:
    """Remove what killed writers left in the scratch folder more than a day ago."""
    for path in storage.scratch().iterdir():
        try:
            is_stale = time.time() - path.stat().st_mtime > STALE_SECONDS
        except FileNotFoundError:
            continue  # another process swept it
        if is_stale and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif is_stale and not path.name.startswith(LOCK_PREFIX):
            path.unlink(missing_ok=True)


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


def _whole(data: bytes, length: int, name: str, offset: int) -> bytes:
    if len(data) != length:
        raise ValueError(f"{name}: ends at byte {offset + len(data)}, expected {offset + length}")
    return data


def _write_through(path: Path, data: bytes) -> None:
    """Write and flush to the disk: what is visible later must survive a power cut."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
