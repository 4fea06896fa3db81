"""Shards: plain webdataset tars, written the same way every time, with an index of offsets.

A sample is a key and its parts ({"jpg": ..., "json": ...}), stored as the members ``key.jpg``
and ``key.json``. `ShardIndex` says where each part's bytes lie, so that one sample can be read
with a ranged get; it is made while writing and can be made again from any tar.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BLOCK = tarfile.BLOCKSIZE
END_OF_TAR = bytes(2 * BLOCK)
MOMENTS_PART, MIRRORED_PART = "npy", "mirrored.npy"  # of latents: of a picture, of its mirrored one
MEMBER_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # webdataset's key and extension


@dataclass(frozen=True)
class Sample:
    """One sample of a shard: a key without dots and slashes, and extension -> bytes."""

    key: str
    parts: Mapping[str, bytes]


@dataclass(frozen=True)
class PartSpans:
    """Where one part lies: offset and length in bytes per sample, int64 (N,); -1 where absent."""

    offsets: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class ShardIndex:
    """Where the parts of a shard's N samples lie, in the order of the tar."""

    keys: tuple[str, ...]
    parts: Mapping[str, PartSpans]

    def span(self, sample: int, extension: str) -> tuple[int, int]:
        """(offset, length) in bytes of a part; KeyError when the sample does not have it."""
        spans = self.parts[extension]
        if spans.offsets[sample] < 0:
            raise KeyError(f"sample {self.keys[sample]} has no part {extension}")
        return int(spans.offsets[sample]), int(spans.lengths[sample])

    def extensions(self, sample: int) -> list[str]:
        """The parts that a sample has, in the order of the tar's first sample with each."""
        return [name for name, spans in self.parts.items() if spans.offsets[sample] >= 0]

    def to_bytes(self) -> bytes:
        """A parquet file: ``key`` and, for each part, ``EXTENSION:offset``, ``EXTENSION:length``."""
        columns: dict[str, pa.Array] = {"key": pa.array(self.keys, pa.string())}
        for extension, spans in self.parts.items():
            columns[f"{extension}:offset"] = pa.array(spans.offsets)
            columns[f"{extension}:length"] = pa.array(spans.lengths)
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer, compression="zstd")
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> ShardIndex:
        """Read what `to_bytes` gave."""
        table = pq.read_table(io.BytesIO(data))
        extensions = [
            name.removesuffix(":offset") for name in table.column_names if name.endswith(":offset")
        ]
        parts = {
            extension: PartSpans(
                table[f"{extension}:offset"].to_numpy(), table[f"{extension}:length"].to_numpy()
            )
            for extension in extensions
        }
        return cls(tuple(table["key"].to_pylist()), parts)


class ShardWriter:
    """Writes samples to a tar one by one; `close` gives the index. A context manager."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.spans: dict[str, dict[str, tuple[int, int]]] = {}

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    def add(self, sample: Sample) -> None:
        """Append a sample.

        Raises:
            ValueError: an empty sample, a key that was there before, or a key or extension that
                webdataset could not tell apart again.
        """
        _check_sample(sample)
        if sample.key in self.spans:
            raise ValueError(f"{self.file.name}: key {sample.key} comes twice")
        spans = self.spans[sample.key] = {}
        for extension, data in sample.parts.items():
            info = tarfile.TarInfo(f"{sample.key}.{extension}")
            info.size = len(data)
            self.file.write(info.tobuf(tarfile.USTAR_FORMAT))
            spans[extension] = (self.file.tell(), len(data))
            self.file.write(data)
            self.file.write(bytes(-len(data) % BLOCK))

    def close(self) -> ShardIndex:
        """End the tar and give its index."""
        self.file.write(END_OF_TAR)
        self.file.close()
        return _make_index(self.spans)


def write_shard(path: Path, samples: Iterable[Sample]) -> ShardIndex:
    """Write a webdataset tar: the same samples give the same bytes. Raises as `ShardWriter.add`."""
    with ShardWriter(path) as writer:
        for sample in samples:
            writer.add(sample)
        return writer.close()


def read_shard(path: Path, index: ShardIndex | None = None) -> Iterator[Sample]:
    """All samples of a tar, in order; without ``index`` it is made first (see `index_tar`)."""
    index = index_tar(path) if index is None else index
    with path.open("rb") as file:
        for position, key in enumerate(index.keys):
            extensions = index.extensions(position)
            yield Sample(key, {name: _read(file, index, position, name) for name in extensions})


def index_tar(path: Path) -> ShardIndex:
    """The index of any uncompressed webdataset tar; members without an extension are left out.

    Raises:
        ValueError: the file is no tar, is cut, or holds a member twice.
    """
    spans: dict[str, dict[str, tuple[int, int]]] = {}
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                end = member.offset_data + member.size + -member.size % BLOCK
                match = MEMBER_NAME.fullmatch(member.name)
                if not member.isreg() or match is None:
                    continue
                key, extension = match[1], match[2].lower()
                if extension in spans.setdefault(key, {}):
                    raise ValueError(f"{path}: member {member.name} comes twice")
                spans[key][extension] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ValueError(f"{path}: not a whole tar ({error}); fetch or make it again") from None
    _require_end_mark(path, end)
    return _make_index(spans)


def _require_end_mark(path: Path, end: int) -> None:
    """tarfile stops at a cut in silence; a whole tar goes on with a block of zeros."""
    with path.open("rb") as file:
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            size = path.stat().st_size
            raise ValueError(f"{path}: cut or damaged at byte {min(end, size)}; make it again")


def _make_index(spans: Mapping[str, Mapping[str, tuple[int, int]]]) -> ShardIndex:
    extensions = dict.fromkeys(extension for parts in spans.values() for extension in parts)
    parts = {}
    for extension in extensions:
        pairs = [sample.get(extension, (-1, -1)) for sample in spans.values()]
        offsets, lengths = np.array(pairs, np.int64).T
        parts[extension] = PartSpans(offsets, lengths)
    return ShardIndex(tuple(spans), parts)


def _read(file: BinaryIO, index: ShardIndex, sample: int, extension: str) -> bytes:
    offset, length = index.span(sample, extension)
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise ValueError(f"{file.name}: cut within {index.keys[sample]}.{extension}")
    return data


def _check_sample(sample: Sample) -> None:
    if not sample.key or "." in sample.key or "/" in sample.key:
        raise ValueError(f"key {sample.key!r}: must not be empty nor hold '.' or '/'")
    if not sample.parts:
        raise ValueError(f"sample {sample.key}: has no parts")
    for extension in sample.parts:
        if not extension or "/" in extension or extension != extension.lower():
            raise ValueError(f"sample {sample.key}: extension {extension!r} must be lower case")
