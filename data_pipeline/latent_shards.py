"""Reads single samples of latents shards, fast and suspicious of the files."""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_pipeline.manifest import StepOutput
from data_pipeline.shards import BLOCK, ShardIndex

NPY_MAGIC_LENGTH = 8  # magic string and version
NPY_LENGTH_FIELD = 2  # of version 1.0, which np.save writes for simple arrays


@dataclass(frozen=True)
class LatentSample:
    """What training reads of a sample: moments float16 (2C, h, w), captions, its class if known."""

    key: str
    moments: np.ndarray
    captions: tuple[str, ...]
    label: int | None = None


@dataclass(frozen=True)
class LatentShard:
    """An open shard: its tar, where the parts lie, and bucket -> places of its members."""

    path: Path
    file: BinaryIO
    index: ShardIndex
    members: Mapping[str, np.ndarray]

    def read(self, bucket: str, member: int) -> LatentSample:
        """One of the bucket's samples.

        Raises:
            ValueError: the file is not what was committed; names it and the way out.
        """
        sample = int(self.members[bucket][member])
        key = self.index.keys[sample]
        moments = parse_npy(self._part(sample, "npy"), f"{self.path}: {key}.npy")
        facts = json.loads(self._part(sample, "json"))
        return LatentSample(key, moments, tuple(facts["captions"]), facts.get("label"))

    def _part(self, sample: int, extension: str) -> bytes:
        """A part's bytes, after a look at the tar header before them: it must name the part."""
        offset, length = self.index.span(sample, extension)
        data = os.pread(self.file.fileno(), BLOCK + length, offset - BLOCK)
        name = f"{self.index.keys[sample]}.{extension}"
        if len(data) < BLOCK + length or not data.startswith(name.encode() + b"\0"):
            raise ValueError(
                f"{self.path}: cut or changed since it was committed ({name} is not at byte "
                f"{offset}); restore the file, or make the shard again"
            )
        return data[BLOCK:]


def open_latent_shard(
    latents: StepOutput, shard_id: str, members: Mapping[str, np.ndarray]
) -> LatentShard:
    """Open a shard of ``latents`` for reading single samples.

    Raises:
        FileNotFoundError: the tar or its index is gone.
        ValueError: the tar is not of the committed size, or ledger and index differ.
    """
    path, index = latents.shard_path(shard_id), latents.index(shard_id)
    num_samples = latents.manifest(shard_id).num_ok
    if len(index.keys) != num_samples:
        raise ValueError(
            f"{latents.url}: the index of shard {shard_id} has {len(index.keys)} samples, "
            f"{num_samples} were committed; make the shard again"
        )
    return LatentShard(path, path.open("rb", buffering=0), index, members)


def parse_npy(data: bytes, name: str) -> np.ndarray:
    """A view of the float16 array in the bytes of a .npy file; much faster than numpy's reader.

    Raises:
        ValueError: not a .npy file of a float16 array in C order; ``name`` says which.
    """
    start = NPY_MAGIC_LENGTH + NPY_LENGTH_FIELD
    start += int.from_bytes(data[NPY_MAGIC_LENGTH:start], "little")
    try:
        shape = _npy_shape(data[:start])
        return np.frombuffer(data, np.float16, offset=start).reshape(shape)
    except ValueError as error:
        raise ValueError(f"{name}: {error}; make the shard again") from None


@functools.lru_cache(maxsize=256)
def _npy_shape(header: bytes) -> tuple[int, ...]:
    file = io.BytesIO(header)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"expected version 1.0 of the format, got {version}")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order or dtype != np.float16:
        raise ValueError(f"expected float16 in C order, got {dtype}")
    return shape
