"""Fixtures of the data pipeline's tests: connections on record, small latents folders."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from data_pipeline.latents import npy_bytes
from data_pipeline.outputs.ledger import Outcome, Row
from data_pipeline.outputs.shards import Sample
from data_pipeline.outputs.step_output import StepOutput
from data_pipeline.storage.interface import StorageConfig

MOMENTS_SHAPES = {"128x128": (8, 2, 2), "160x96": (8, 1, 3)}


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


def _one_bucket(number: int) -> str:
    return "128x128"


@pytest.fixture
def write_latents() -> Callable[..., list[str]]:
    """A function that writes a latents folder as the step does, and gives its keys.

    A sample's moments are full of its number in the folder, those of its mirrored picture of minus
    that; its captions are "KEY level 0" ... 3.
    Each shard's ledger begins with a failed row.
    """

    def write(
        url: str,
        sizes: Sequence[int],
        bucket_of: Callable[[int], str] = _one_bucket,
        storage: StorageConfig | None = None,
        vae: str = "test",
        label_of: Callable[[int], object] | None = None,
        is_mirrored: bool = False,
    ) -> list[str]:
        output, keys = StepOutput.open(url, storage), []
        output.begin({"vae": vae} | ({"mirrored": True} if is_mirrored else {}))
        for shard, size in enumerate(sizes):
            with output.writer(f"{shard:05d}", {"bucket": "string"}, ["bucket"]) as writer:
                writer.add(Outcome(Row(f"{shard:05d}000000", "failed", "undecodable")))
                for row in range(1, size + 1):
                    key, number = f"{shard:05d}{row:06d}", len(keys)
                    bucket = bucket_of(number)
                    sample = latents_sample(key, number, bucket, label_of, is_mirrored)
                    writer.add(Outcome(Row(key, "ok", columns={"bucket": bucket}), sample))
                    keys.append(key)
                writer.commit()
        return keys

    return write


def latents_sample(
    key: str,
    number: int,
    bucket: str,
    label_of: Callable[[int], object] | None,
    is_mirrored: bool,
) -> Sample:
    numbers = {"npy": number, **({"mirrored.npy": -number} if is_mirrored else {})}
    arrays = {
        name: npy_bytes(np.full(MOMENTS_SHAPES[bucket], value, np.float16))
        for name, value in numbers.items()
    }
    captions = [f"{key} level {level}" for level in range(4)]
    facts: dict[str, object] = {"captions": captions, "bucket": bucket}
    if label_of is not None:
        facts["label"] = label_of(number)
    return Sample(key, {**arrays, "json": json.dumps(facts).encode()})


@pytest.fixture
def write_kept() -> Callable[..., None]:
    """A function that writes the filter's ledger: keys of the shards' ids -> those that are kept."""

    def write(url: str, keys: Sequence[str], keep: Callable[[str], bool]) -> None:
        output = StepOutput.open(url)
        for shard_id in sorted({key[:5] for key in keys}):
            with output.writer(shard_id) as writer:
                for key in keys:
                    if key.startswith(shard_id):
                        writer.add(Outcome(Row(key, "ok" if keep(key) else "filtered", "score")))
                writer.commit()

    return write
