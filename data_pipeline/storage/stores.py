"""Where data lies: a local folder or an S3 bucket behind one small interface.

    storage = open_storage("outputs/nano/images")
    storage = open_storage("s3://bucket/images", StorageConfig(endpoint_url="http://localhost:9000"))

A key is a relative path with "/" in it. Whatever is stored appears whole or not at all, and
`put_if_absent` has one winner among any number of writers: local files are written aside and
linked into place, S3 objects carry ``IfNoneMatch="*"``. boto3 is imported for s3:// only.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from data_pipeline.storage.interface import LOCK_PREFIX, Storage, StorageConfig
from data_pipeline.storage.local import LocalStorage
from data_pipeline.storage.s3 import S3Storage

STALE_SECONDS = 24 * 3600.0


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
