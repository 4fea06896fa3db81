"""What a storage can do, and its settings (section data_pipeline.storage)."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pydantic import Field

from t2i.config import Section

SCRATCH = ".incomplete"
LOCK_PREFIX = "lock-"


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


def whole(data: bytes, length: int, name: str, offset: int) -> bytes:
    """The data, if it is as long as was asked for.

    Raises:
        ValueError: it is shorter; ``name`` says of what.
    """
    if len(data) != length:
        raise ValueError(f"{name}: ends at byte {offset + len(data)}, expected {offset + length}")
    return data
