"""The manifest of a committed shard: what makes its files visible."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from data_pipeline.storage.interface import Storage


@dataclass(frozen=True)
class ShardManifest:
    """One committed shard: the keys of its files in the storage, their sizes, and its counts.

    ``bytes`` and ``sha256`` are by storage key; ``reasons`` is status -> reason -> count.
    ``shard_key`` and ``index_key`` are None when the step writes no samples. ``num_ok_by`` is
    column -> value -> number of ok rows, for the ledger columns that the step has counted; older
    manifests lack it.

    Raises:
        ValueError: the counts do not add up.
    """

    id: str
    shard_key: str | None
    index_key: str | None
    status_key: str
    num_in: int
    num_ok: int
    num_filtered: int
    num_failed: int
    reasons: Mapping[str, Mapping[str, int]]
    bytes: Mapping[str, int]
    sha256: Mapping[str, str]
    num_ok_by: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        total = self.num_ok + self.num_filtered + self.num_failed
        if self.num_in != total:
            raise ValueError(f"num_in is {self.num_in}, but its parts are {total}")
        for column, counts in self.num_ok_by.items():
            if sum(counts.values()) != self.num_ok:
                raise ValueError(
                    f"num_ok is {self.num_ok}, but num_ok_by.{column} are {sum(counts.values())}"
                )


def read_manifest(storage: Storage, shard_id: str) -> ShardManifest:
    """What was committed of a shard.

    Raises:
        FileNotFoundError: it is not committed.
        ValueError: the manifest is damaged.
    """
    key = f"manifest/{shard_id}.json"
    text = storage.get(key)
    try:
        return ShardManifest(**json.loads(text))
    except ValueError as error:
        raise ValueError(
            f"{storage.url}/{key}: damaged ({error}); restore it, or delete it and run the step again"
        ) from None


def sha256_of_bytes(data: bytes) -> str:
    """In hexadecimal digits, as manifests have it."""
    return hashlib.sha256(data).hexdigest()
